"""What the record shows of a trajectory: visits, diagnoses, drugs, procedures and measurements with their times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ehrsequencing.data.synthetic_disease import EMERGENCY, INPATIENT, OUTPATIENT
from ehrsequencing.data.synthetic_model import RING, STATICS, TRAITS, Effect, Model
from ehrsequencing.data.synthetic_patterns import (
    REACTION_FIDELITY,
    REACTION_MINUTES,
    REACTION_SHOWN,
    REACTION_STATE,
    RING_FIDELITY,
    RING_SIZE,
    RING_STATE,
    SPELL_FIDELITY,
    SPELL_MINUTES,
    SPELL_SHOWN,
    SPELL_SIZE,
    SPELL_STATE,
    ring_places,
)
from ehrsequencing.data.synthetic_random import integers, normal, uniform
from ehrsequencing.data.synthetic_visits import MINUTES_PER_DAY, REMOTE, Trajectories, Visits

PANELS: dict[str, tuple[float, float, float, dict[str, float]]] = {
    "pressure": (0.20, 0.25, 0.3, {"hypertension": 0.12}),
    "weight": (0.08, 0.0, 0.1, {"obesity": 0.08, "heart_failure": 0.15}),
    "saturation": (0.0, 0.2, 0.4, {"copd": 0.08, "asthma": 0.05, "heart_failure": 0.05}),
    "metabolic": (0.04, 0.15, 0.4, {"diabetes": 0.05, "ckd": 0.10, "hypertension": 0.04, "heart_failure": 0.04}),
    "blood_count": (0.03, 0.15, 0.3, {"anemia": 0.2, "ckd": 0.03, "colorectal_cancer": 0.2, "lung_cancer": 0.2}),
    "lipid": (0.03, 0.0, 0.0, {"dyslipidemia": 0.10, "cad": 0.03, "diabetes": 0.03}),
    "glycemia": (0.03, 0.0, 0.0, {"diabetes": 0.4, "obesity": 0.05}),
    "kidney": (0.0, 0.0, 0.03, {"ckd": 0.12, "diabetes": 0.03}),
    "cardiac": (0.55, 0.5, 0.7, {"hypertension": 0.25, "cad": 0.2, "diabetes": 0.12, "afib": 0.15, "ckd": 0.1}),
    "thyroid": (0.02, 0.0, 0.0, {"hypothyroid": 0.4}),
    "liver": (0.01, 0.05, 0.05, {"liver_disease": 0.15, "rheumatoid": 0.10, "alcohol": 0.04}),
    "inflammation": (0.01, 0.05, 0.10, {"rheumatoid": 0.3, "gout": 0.05}),
    "prostate": (0.0, 0.0, 0.0, {"bph": 0.15, "prostate_cancer": 0.5}),
    "tumor": (0.0, 0.0, 0.0, {"breast_cancer": 0.3, "colorectal_cancer": 0.4, "lung_cancer": 0.3}),
    "gout": (0.0, 0.0, 0.0, {"gout": 0.3}),
    "iron": (0.0, 0.0, 0.02, {"anemia": 0.2, "ckd": 0.02}),
    "bone": (0.01, 0.0, 0.0, {"osteoporosis": 0.2}),
    "coagulation": (0.0, 0.05, 0.1, {"afib": 0.2, "liver_disease": 0.1}),
    "critical": (0.0, 0.0, 0.12, {}),
    "lung": (0.0, 0.0, 0.0, {"asthma": 0.15, "copd": 0.25}),
    "mood": (0.03, 0.0, 0.0, {"depression": 0.35, "anxiety": 0.15}),
    "cognition": (0.0, 0.0, 0.0, {"dementia": 0.35}),
    "complement": (0.6, 0.0, 0.0, {}),
}
"""Chance of a panel at a clinic, emergency and hospital visit, and what each known condition adds at a clinic."""
REPEATED_PANELS, BEFORE_DISCHARGE = ("metabolic",), 180
"""Measured again before discharge of stays of three days and more, and how many minutes before."""
CHRONIC_CODED = {OUTPATIENT: 0.14, REMOTE: 0.14, EMERGENCY: 0.08, INPATIENT: 0.30}
REFILL_VISIT, REFILL, HOSPITAL_REFILL = 0.16, 0.97, 0.25
HISTORY_CODED = 0.08
ROUTINE, MINOR, HABITUAL_MINOR, INPATIENT_COMPLICATION = 0.2, 0.2, 0.7, 0.4
TRIGGERED_PROCEDURES = {"cad": 1, "heart_failure": 1, "afib": 1, "ckd": 4, "osteoarthritis": 3, "sleep_apnea": 1,
                        "breast_cancer": 1, "prostate_cancer": 1, "colorectal_cancer": 1, "lung_cancer": 1}  # fmt: skip
"""Conditions whose diagnosis, or step up at a visit, brings a procedure, and the level from which they do."""
_LAB, _TREAT, _DX, _PX, _FACILITY, _PATTERN = 10_000, 20_000, 30_000, 40_000, 50_001, 60_000


@dataclass(frozen=True)
class Events:
    """Events of a block, unordered: visit row, minutes since entry, index into the code book, value or NaN."""

    visit: np.ndarray
    minute: np.ndarray
    code: np.ndarray
    value: np.ndarray


class Emitter:
    """Collects the parts of `Events`: methods are parts of the record, and `emit` calls them all."""

    def __init__(self, model: Model, paths: Trajectories, visits: Visits, wanted: np.ndarray | None) -> None:
        self.model, self.paths, self.visits, self.wanted = model, paths, visits, wanted
        self.static = paths.static
        row, subject, hospital = visits.row, visits.subject, visits.at_hospital
        # A clinic visit comes before the acute conditions of its step, and shows nothing of them.
        self.level = paths.level[row + 1, subject]
        self.level[np.ix_(~hospital, model.conditions.acute)] = 0
        self.level_before = paths.level[row + visits.second, subject]

        def around(then: np.ndarray, midway: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            middle = midway[row + 1, subject]
            at = hospital[:, None]
            return np.where(at, middle, then[row, subject]), np.where(at, then[row + 1, subject], middle)

        self.known_before, self.known = around(paths.known, paths.known_midway)
        self.drug_before, self.drug = around(paths.drug, paths.drug_midway)
        self.parts: list[Events] = []

    def needs(self, role: str) -> bool:
        """Whether a role holds a wanted code."""
        return self.wanted is None or bool(self.wanted[self.model.book.roles[role][0]].any())

    def add(
        self, visit: np.ndarray, minute: np.ndarray, code: int | np.ndarray, value: np.ndarray | None = None
    ) -> None:
        """Add events; `minute` and `code` broadcast over `visit`."""
        shape = visit.shape
        if self.wanted is not None:
            keep = self.wanted[np.broadcast_to(code, shape)]
            visit, shape = visit[keep], (int(keep.sum()),)
            minute, code = minute[keep], code[keep] if isinstance(code, np.ndarray) else code
            value = None if value is None else value[keep]
        self.parts.append(
            Events(
                visit.astype(np.int32),
                np.broadcast_to(minute, shape).astype(np.int64),
                np.broadcast_to(code, shape).astype(np.int16),
                np.full(shape, np.nan, dtype=np.float32) if value is None else value.astype(np.float32),
            )
        )

    def choose(self, role: str, draw: np.ndarray) -> np.ndarray:
        """Codes of a role by uniform draws."""
        members, cumulative = self.model.book.roles[role]
        return members[np.searchsorted(cumulative, draw, side="right")]

    def pick(self, role: str, where: np.ndarray, minute: np.ndarray, stream: int, personal: bool = False) -> None:
        """One code of a role at each visit of `where`; `personal` draws once per subject, so that it recurs."""
        if not self.needs(role):
            return
        keys = self.static[self.visits.subject[where]] if personal else self.visits.keys[where]
        self.add(where, minute[where], self.choose(role, uniform(keys, stream)))

    def run(self) -> None:
        """All parts."""
        self.encounters()
        self.diagnoses()
        self.treatments(self.minor())
        self.procedures()
        self.measurements()
        self.patterns()

    # Parts -----------------------------------------------------------------------------------------------------

    def encounters(self) -> None:
        """Visit and discharge codes."""
        visits = self.visits
        for kind, role in ((OUTPATIENT, "outpatient"), (REMOTE, "telehealth"), (EMERGENCY, "emergency"),
                           (INPATIENT, "inpatient")):  # fmt: skip
            self.pick(f"visit/{role}", np.flatnonzero(visits.kind == kind), visits.start, 0)
        stay = visits.kind == INPATIENT
        age = self.paths.entry_months[visits.subject] + visits.step
        facility = uniform(visits.keys, _FACILITY) < np.clip((age - 720) / 1200, 0.05, 0.5)
        for role, where in (("died", visits.died), ("facility", facility & ~visits.died),
                            ("home", ~facility & ~visits.died)):  # fmt: skip
            self.pick(f"discharge/{role}", np.flatnonzero(stay & where), visits.end, 0)

    def diagnoses(self) -> None:
        """Diagnosis codes: all at intake, new ones always, chronic ones often, acute ones at acute visits.

        Stamped at the end of the visit, when a hospital codes them.
        """
        visits, conditions = self.visits, self.model.conditions
        new = self.known & ~self.known_before
        intake = visits.step == 0
        chance = np.zeros(REMOTE + 1)
        for kind, share in CHRONIC_CODED.items():
            chance[kind] = share
        at_hospital = visits.at_hospital
        for number, name in enumerate(conditions.names):
            grades = [grade for grade in range(conditions.levels[number] + 1)
                      if (role := f"dx/{name}/{grade}") in self.model.book.roles and self.needs(role)]  # fmt: skip
            if not grades:
                continue
            drawn = uniform(visits.keys, _DX + number)
            level, known = self.level[:, number], self.known[:, number]
            if conditions.courses[number] == "acute":
                coded = (level > 0) & at_hospital
                history = (level == 0) & known & (drawn < HISTORY_CODED)
            else:
                coded = known & (level > 0) & (intake | new[:, number] | (drawn < chance[visits.kind]))
                history = known & (level == 0) & (drawn < HISTORY_CODED)
            acute = bool(conditions.courses[number] == "acute")
            for grade in grades:
                where = np.flatnonzero(coded & (level == grade) if grade else history)
                stream = _DX + 100 + 8 * number + grade
                self.pick(f"dx/{name}/{grade}", where, visits.end, stream, personal=not (acute and grade))

    def minor(self) -> np.ndarray:
        """Routine and minor reasons for visits, complications and status codes; returns visits with a minor illness."""
        visits, kind = self.visits, self.visits.kind
        clinic = (kind == OUTPATIENT) | (kind == REMOTE)
        draw = uniform(visits.keys, _DX + np.arange(900, 908))
        self.pick("dx/routine", np.flatnonzero((kind == OUTPATIENT) & (draw[0] < ROUTINE)), visits.end, _DX + 910)
        ill = clinic & (draw[1] < MINOR)
        sexed = draw[2] < 0.15
        male = self.paths.male[visits.subject] == 1
        habit = draw[3] < HABITUAL_MINOR
        which = integers(visits.keys, _DX + 911, 3)
        for role, group in (("minor", ~sexed), ("minor_male", sexed & male), ("minor_female", sexed & ~male)):
            self.pick(f"dx/{role}", np.flatnonzero(ill & group & ~habit), visits.end, _DX + 912)
            for favourite in range(3):
                where = np.flatnonzero(ill & group & habit & (which == favourite))
                self.pick(f"dx/{role}", where, visits.end, _DX + 920 + favourite, personal=True)
        strain, rising = (self.level[:, self.model.condition(name)] for name in ("strain", "rising"))
        ailing = clinic & (draw[6] < 0.01 + 0.03 * strain + 0.15 * rising)
        self.pick("dx/symptom", np.flatnonzero(ailing), visits.end, _DX + 929)
        stay = kind == INPATIENT
        self.pick("dx/inpatient", np.flatnonzero(stay & (draw[4] < INPATIENT_COMPLICATION)), visits.end, _DX + 930)
        drug, model = self.drug, self.model
        chemo = drug[:, model.drug("chemo")]
        for role, has, share in (
            ("treatment", chemo, 0.6),
            ("dialysis", self.known[:, model.condition("ckd")] & (self.level[:, model.condition("ckd")] == 4), 0.6),
            ("anticoagulated", drug[:, model.drug("anticoagulant")], 0.3),
            ("insulin_use", drug[:, model.drug("insulin")], 0.3),
        ):
            self.pick(f"dx/{role}", np.flatnonzero(has & (draw[5] < share)), visits.end, _DX + 931)
        return ill

    def refilled(self) -> np.ndarray:
        """Clinic visits at which nearly all drugs are listed, bool [v]."""
        return ~self.visits.at_hospital & (uniform(self.visits.keys, _TREAT) < REFILL_VISIT)

    def treatments(self, ill: np.ndarray) -> None:
        """Drugs: begun ones always, continued ones where refilled, short courses for minor and hospital illness."""
        visits, drugs = self.visits, self.model.drugs
        before = self.drug_before
        chance = np.where(self.refilled(), REFILL, np.where(visits.kind == INPATIENT, HOSPITAL_REFILL, 0.0))
        for number, name in enumerate(drugs.names):
            if not self.needs(f"rx/{name}"):
                continue
            taken = self.drug[:, number]
            shown = taken & (~before[:, number] | (uniform(visits.keys, _TREAT + 1 + number) < chance))
            self.pick(f"rx/{name}", np.flatnonzero(shown), visits.end, _TREAT + 200 + number, personal=True)
        course = np.flatnonzero(ill & (uniform(visits.keys, _TREAT + 300) < 0.4))
        self.pick("rx/course_outpatient", course, visits.end, _TREAT + 301)
        stay = visits.kind == INPATIENT
        for extra in range(3):
            where = np.flatnonzero(stay & (uniform(visits.keys, _TREAT + 310 + extra) < 0.6))
            self.pick("rx/course_inpatient", where, visits.start + 120, _TREAT + 320 + extra)

    def procedures(self) -> None:
        """Procedures of acute causes, of new diagnoses, of treatments, and routine ones."""
        visits, conditions, model = self.visits, self.model.conditions, self.model
        stay = visits.kind == INPATIENT
        next_day = (visits.start // MINUTES_PER_DAY + 1) * MINUTES_PER_DAY + 10 * 60
        minute = np.where(stay, next_day, visits.end)
        for number in conditions.acute:
            role = f"px/{conditions.names[number]}"
            if role in model.book.roles and self.needs(role):
                for extra, share in ((0, 0.75), (1, 0.35)):
                    drawn = uniform(visits.keys, _PX + 2 * number + extra) < share
                    where = np.flatnonzero((visits.cause == number) & drawn)
                    self.pick(role, where, minute, _PX + 200 + 2 * number + extra)
        for name, least in TRIGGERED_PROCEDURES.items():
            number = model.condition(name)
            rose = self.level[:, number] > self.level_before[:, number]
            fresh = self.known[:, number] & ~self.known_before[:, number]
            due = self.known[:, number] & (self.level[:, number] >= least) & (rose | fresh)
            where = np.flatnonzero(due & (visits.kind != REMOTE) & (uniform(visits.keys, _PX + 400 + number) < 0.7))
            self.pick(f"px/{name}", where, minute, _PX + 500 + number)
        dialysis = self.known[:, model.condition("ckd")] & (self.level[:, model.condition("ckd")] == 4)
        age = (self.paths.entry_months[visits.subject] + visits.step) // 12
        heart = self.known[:, model.condition("cad")] | self.known[:, model.condition("afib")]
        clinic = visits.kind == OUTPATIENT
        shares = (
            ("chemo", np.where(self.drug[:, model.drug("chemo")] & clinic, 0.6, 0.0)),
            ("ckd", np.where(dialysis & (visits.kind != REMOTE), 0.6, 0.0)),
            ("screening", np.where(clinic & (age >= 45), 0.02, 0.0)),
            ("immunization", np.where(clinic, 0.08, 0.0)),
            ("electrocardiogram", np.where(visits.kind == REMOTE, 0.0, np.where(heart, 0.18, 0.03))),
        )
        for stream, (role, chance) in enumerate(shares):
            chosen = np.flatnonzero(uniform(visits.keys, _PX + 600 + stream) < chance)
            self.pick(f"px/{role}", chosen, minute, _PX + 610 + stream)

    def panels(self) -> dict[str, np.ndarray]:
        """Visits at which each panel is ordered."""
        visits, kind = self.visits, self.visits.kind
        ordered: dict[str, np.ndarray] = {}
        at_clinic = (kind == OUTPATIENT) | (kind == REMOTE)
        male = self.paths.male[visits.subject] == 1
        for number, (panel, (clinic, emergency, stay, boosts)) in enumerate(PANELS.items()):
            chance: np.ndarray = np.full(len(visits), clinic)
            for name, boost in boosts.items():
                chance += boost * self.known[:, self.model.condition(name)]
            chance = np.minimum(chance, 0.95)
            hospital = np.where(kind == EMERGENCY, np.maximum(emergency, 0.3 * chance), np.maximum(stay, 0.4 * chance))
            chance = np.where(kind == REMOTE, 0.0, np.where(at_clinic, chance, hospital))
            drawn = uniform(visits.keys, _LAB + number)
            ordered[panel] = np.flatnonzero((drawn < chance) & (male if panel == "prostate" else True))
        return ordered

    def remeasured(self) -> np.ndarray:
        """Stays whose `REPEATED_PANELS` are measured again, `BEFORE_DISCHARGE` minutes before their end."""
        visits = self.visits
        return np.flatnonzero((visits.kind == INPATIENT) & (visits.end - visits.start >= 3 * MINUTES_PER_DAY))

    def measurements(self) -> None:
        """Panels of labs and vitals, their members together; some again before discharge."""
        visits, ordered, again = self.visits, self.panels(), self.remeasured()
        self.ring = self.cycle_places(ordered["complement"])
        for number, lab in enumerate(self.model.labs):
            index = self.model.book.index(lab.code)
            if self.wanted is not None and not self.wanted[index]:
                continue
            where = ordered[lab.panel]
            self.add(where, visits.start[where], index, self.values(number, where, 0))
            if lab.panel in REPEATED_PANELS:
                self.add(again, visits.end[again] - BEFORE_DISCHARGE, index, self.values(number, again, 1))

    def values(self, number: int, where: np.ndarray, repeat: int) -> np.ndarray:
        """Values of one lab at visits: the subject's own level, effects of states and treatment, and noise."""
        lab, subject = self.model.labs[number], self.visits.subject[where]
        own, noise = self._deviates(number, where, repeat)
        value = lab.centre + lab.between * own + lab.within * noise
        if lab.age:
            months = self.paths.entry_months[subject] + self.visits.step[where]
            value += lab.age * (months / 12 - 60) / 10
        for effect in lab.effects:
            value += effect.size * self._term(effect, where)
        if lab.log_scale:
            value = np.exp(value)
        return np.clip(np.round(value, lab.decimals), lab.low, lab.high)

    def _deviates(self, number: int, where: np.ndarray, repeat: int) -> tuple[np.ndarray, np.ndarray]:
        """Standard normal deviates of the subject's own level and of the visit, correlated with the twin's."""
        lab = self.model.labs[number]
        own = normal(self.static[self.visits.subject[where]], _LAB + number)
        noise = normal(self.visits.keys[where], _LAB + 100 + 2 * number + repeat)
        if lab.twin < 0:
            return own, noise
        shared, apart = lab.twin_correlation, np.sqrt(1 - lab.twin_correlation**2)
        twin_own, twin_noise = self._deviates(lab.twin, where, repeat)
        return shared * twin_own + apart * own, shared * twin_noise + apart * noise

    def _term(self, effect: Effect, where: np.ndarray) -> np.ndarray:
        """What a lab reads at visits."""
        name, kind, argument = effect.term
        subject = self.visits.subject[where]
        if name in self.model.conditions.names:
            values = self.level[where, self.model.condition(name)]
        elif name in self.model.drugs.names:
            values = self.drug[where, self.model.drug(name)]
        elif name in TRAITS:
            values = self.paths.traits[subject, TRAITS.index(name)]
        elif name == RING:
            values = self.ring[where]
        else:
            values = {static: getattr(self.paths, static) for static in STATICS}[name][subject]
        if kind == "level":
            return values.astype(np.float64)
        return (values == argument if kind == "equals" else values > 0).astype(np.float64)

    # Order: what hidden states leave in the sequence of codes alone ----------------------------------------------

    def patterns(self) -> None:
        """The two patterns of codes; see `synthetic_patterns`."""
        visits, roles = self.visits, self.model.book.roles
        clinic = ~visits.at_hospital
        draw = uniform(visits.keys, _PATTERN + np.arange(7))
        if self.needs("pattern/spell"):
            shown = np.flatnonzero(clinic & (draw[0] < SPELL_SHOWN))
            forward = self._agrees(SPELL_STATE, shown, draw[1], SPELL_FIDELITY)
            places = self.spell_places(shown, forward, integers(visits.keys[shown], _PATTERN + 7, SPELL_SIZE))
            for minute, place in zip(SPELL_MINUTES, places, strict=True):
                self.add(shown, visits.start[shown] + minute, roles["pattern/spell"][0][place])
        if not (self.needs("pattern/drug") or self.needs("pattern/reaction")):
            return
        shown = np.flatnonzero(clinic & (draw[2] < REACTION_SHOWN))
        drug_first = self.drug_first(shown, self._agrees(REACTION_STATE, shown, draw[5], REACTION_FIDELITY))
        early, late = REACTION_MINUTES
        for role, drawn, first in (("drug", draw[3], drug_first), ("reaction", draw[4], ~drug_first)):
            code = roles[f"pattern/{role}"][0][(drawn[shown] < 0.5).astype(np.int64)]
            self.add(shown, visits.start[shown] + np.where(first, early, late), code)

    def spell_places(self, shown: np.ndarray, forward: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Places of the first and the second complaint in their cycle."""
        return first, (first + np.where(forward, 1, -1)) % SPELL_SIZE

    def drug_first(self, shown: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """Whether the drug comes before the complaint."""
        return drawn

    def walk(self, measured: np.ndarray, forward: np.ndarray) -> np.ndarray:
        """Places of the complement cycle at the visits that measure it, each one move from the place before."""
        return ring_places(self.visits.subject[measured], forward, self.first_places(), RING_SIZE)

    def first_places(self) -> np.ndarray:
        """Place of each subject before it moves for the first time, int64 [n]."""
        return integers(self.static, _PATTERN + 1, RING_SIZE)

    def cycle_places(self, measured: np.ndarray) -> np.ndarray:
        """Place of the complement cycle at every visit, int64 [v]; 0 where it is not measured."""
        forward = self._agrees(RING_STATE, measured, uniform(self.visits.keys, _PATTERN + 6), RING_FIDELITY)
        place = np.zeros(len(self.visits), dtype=np.int64)
        place[measured] = self.walk(measured, forward)
        return place

    def _agrees(self, state: str, where: np.ndarray, draw: np.ndarray, fidelity: float) -> np.ndarray:
        """Whether the pattern goes the way of a present state, bool [len(where)]."""
        present = self.level[where, self.model.condition(state)] > 0
        return present == (draw[where] < fidelity)


def emit(model: Model, paths: Trajectories, visits: Visits, wanted: np.ndarray | None = None) -> Events:
    """Dated events of a block except birth and death, in no order.

    Args:
        wanted: bool [codes of the book]; the same events, of these codes only, for a fraction of the work.
    """
    emitter = Emitter(model, paths, visits, wanted)
    emitter.run()
    parts = emitter.parts
    return Events(*(np.concatenate([getattr(part, name) for part in parts])
                    for name in ("visit", "minute", "code", "value")))  # fmt: skip
