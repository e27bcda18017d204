"""The rules of docs/tasks.md once more, one subject and one row at a time, in plain Python."""

import datetime as dt
import math
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

DAY = dt.timedelta(days=1)
ADMITS, DISCHARGES, DIED = ("VISIT//inpatient", "HOSPITAL_ADMISSION"), ("DISCHARGE", "HOSPITAL_DISCHARGE"), (
    "DISCHARGE//died", "HOSPITAL_DISCHARGE//DIED",
)  # fmt: skip


@dataclass
class Person:
    events: list = field(default_factory=list)  # (time or None, code, visit or None)
    end: dt.datetime | None = None

    @property
    def dated(self):
        return [event for event in self.events if event[0] is not None]

    @property
    def death(self):
        return min((t for t, code, _ in self.dated if code == "MEDS_DEATH"), default=None)

    @property
    def birth(self):
        return min((t for t, code, _ in self.dated if code == "MEDS_BIRTH"), default=None)

    @property
    def first(self):
        return min((t for t, code, _ in self.dated if code != "MEDS_BIRTH"), default=None)

    @property
    def observed_until(self):
        return max([t for t, code, _ in self.dated if code != "MEDS_BIRTH"] + ([self.end] if self.end else []))

    @property
    def dead_from(self):
        """The first instant at which the record says the subject is dead."""
        said = [t for t, code, _ in self.dated if any(is_or_below(code, died) for died in DIED)]
        return min(said + ([self.death] if self.death else []), default=None)

    def first_code(self, prefixes):
        times = [t for t, code, _ in self.events if code.startswith(prefixes)]
        return dt.datetime.min if None in times else min(times, default=None)

    def old_enough(self, t, years):
        return years <= 0 or (self.birth is not None and (t - self.birth) / DAY / 365.25 >= years)


def is_or_below(code, parent):
    return code == parent or code.startswith(parent + "//")


def people(rows, ends=None):
    found = defaultdict(Person)
    for subject, time, code, visit in rows:
        found[subject].events.append((time, code, visit))
    for subject, end in (ends or {}).items():
        if subject in found:
            found[subject].end = end
    return dict(sorted(found.items()))


def visits(person):
    content = defaultdict(list)
    for t, code, visit in person.dated:
        if code not in ("MEDS_BIRTH", "MEDS_DEATH"):
            content[("day", t.date()) if visit is None else ("visit", visit)].append((t, code))
    return list(content.values())


def candidates(person, rules):
    if rules.at_days:
        return {person.first + days * DAY for days in rules.at_days}
    if rules.at_age_years:
        first, last, birth = person.first, person.observed_until, person.birth
        at = (birth + round(years * 365.25) * DAY for years in rules.at_age_years if birth)
        return {t for t in at if first <= t <= last}
    return {
        max(t for t, _ in content)
        for content in visits(person)
        if rules.at_kind is None or any(kind_of(code) == rules.at_kind for _, code in content)
    }


def kind_of(code):
    return "diagnosis" if code[0] in "ABC" else "other"


def landmarks(person, rules, risk=lambda t: True):
    taken = []
    for t in sorted(candidates(person, rules)):
        enough = rules.at_days or t >= person.first + rules.history_days * DAY
        if t < person.first or not enough or not person.old_enough(t, rules.minimum_age_years):
            continue
        if (person.dead_from is not None and person.dead_from <= t) or not risk(t):
            continue
        if not taken or rules.at_days or rules.at_age_years or t >= taken[-1] + rules.spacing_days * DAY:
            taken.append(t)
    return taken


def window(person, t, days, event):
    """True, False, or None where nobody can know, or where knowing depends on the answer."""
    end = t + days * DAY
    came = event is not None and event <= end
    if person.observed_until >= end or (person.death is not None and person.death <= end):
        return came
    stated = person.end is not None and person.observed_until == person.end
    return True if came and not stated else None


def onset(person, rules, prefixes, days):
    code = person.first_code(prefixes)
    asked = landmarks(person, rules, lambda t: code is None or code > t)
    answers = [(t, window(person, t, days, code)) for t in asked]
    return [(t, answer) for t, answer in answers if answer is not None]


def mortality(person, rules, days):
    answers = [(t, window(person, t, days, person.death)) for t in landmarks(person, rules)]
    return [(t, answer) for t, answer in answers if answer is not None]


def next_visit(person, rules, wanted):
    found = []
    for t in landmarks(person, rules):
        later = [content for content in visits(person) if min(t for t, _ in content) > t]
        if later:
            start = min(min(t for t, _ in content) for content in later)
            codes = {c for content in later if min(t for t, _ in content) == start for _, c in content}
            found.append((t, {code for code in codes if code.startswith(wanted)}))
    return found


def phenotypes(person, rules, definitions, days):
    found = []
    for t in landmarks(person, rules):
        end = t + days * DAY
        if person.observed_until >= end or (person.death is not None and person.death <= end):
            names = {name for name, prefixes in definitions.items() for time, code, _ in person.dated
                     if t < time <= end and code.startswith(prefixes)}  # fmt: skip
            found.append((t, names))
    return found


def time_to(person, rules, prefixes, days, competing=()):
    """(t, status, days); no prefixes ask for death."""
    code = person.first_code(prefixes) if prefixes else None
    other = person.first_code(competing) if competing else None
    found = []
    for t in landmarks(person, rules, lambda t: (code is None or code > t) and (other is None or other > t)):
        limit = t + days * DAY if days else dt.datetime.max
        causes = []
        if not prefixes and person.death:
            causes.append((person.death, 1))
        elif prefixes and code is not None:
            causes.append((min(code, person.death) if person.death else code, 1))
        elif prefixes and person.death:
            causes.append((person.death, 2))
        if other is not None:
            causes.append((other, 3 if prefixes else 2))
        causes = sorted(c for c in causes if c[0] <= limit)
        until, status = causes[0] if causes else (min(person.observed_until, limit), 0)
        if until > t:
            found.append((t, status, (until - t) / DAY))
    return found


def stays(person):
    """Dictionaries of admission, discharge (None), died; transfers joined, in order of time."""
    segments = []
    by_visit, loose = defaultdict(list), defaultdict(list)
    for t, code, visit in person.dated:
        for source, (admit, discharge) in enumerate(zip(ADMITS, DISCHARGES, strict=True)):
            role = "in" if is_or_below(code, admit) else "out" if is_or_below(code, discharge) else None
            if role:
                group = loose[source] if visit is None else by_visit[source, visit]
                group.append((t, role, any(is_or_below(code, died) for died in DIED)))
    for codes in by_visit.values():
        starts, outs = [t for t, role, _ in codes if role == "in"], [t for t, role, _ in codes if role == "out"]
        if starts:
            out = max(outs) if outs and max(outs) >= min(starts) else None
            segments.append([min(starts), out, any(died for _, _, died in codes)])
    for codes in loose.values():
        starts = sorted({t for t, role, _ in codes if role == "in"})
        for start, following in zip(starts, [*starts[1:], dt.datetime.max], strict=True):
            outs = sorted(t for t, role, _ in codes if role == "out" and start < t)
            out = outs[0] if outs and outs[0] <= following else None
            if out is None and any(role == "out" and t == start for t, role, _ in codes):
                out = start
            died = out is not None and any(d for t, role, d in codes if role == "out" and t == out)
            segments.append([start, out, died])
    joined = []
    reach = None
    for start, out, died in sorted(segments, key=lambda s: (s[0], s[1] or dt.datetime.min)):
        if joined and (start <= reach + dt.timedelta(hours=6) or start.date() == reach.date()):
            joined[-1].append((start, out, died))
        else:
            joined.append([(start, out, died)])
        reach = max([reach, out or start]) if reach else (out or start)
    found = []
    for parts in joined:
        out = max(o for _, o, _ in parts if o is not None) if parts[-1][1] is not None else None
        found.append({"in": parts[0][0], "out": out, "died": any(d for _, _, d in parts)})
    for stay, following in zip(found, [*found[1:], None][: len(found)], strict=True):
        death = person.death
        if stay["out"] is None and death and death >= stay["in"] and (following is None or following["in"] > death):
            stay["out"] = death
        if death and stay["out"] and stay["in"].date() <= death.date() <= stay["out"].date():
            stay["died"] = True
    return found


def readmission(person, rules, days):
    found, all_stays = [], stays(person)
    for number, stay in enumerate(all_stays):
        t = stay["out"]
        if t is None or stay["died"] or (person.death and person.death <= t):
            continue
        if not person.old_enough(t, rules.minimum_age_years):
            continue
        following = all_stays[number + 1]["in"] if number + 1 < len(all_stays) else None
        if following and person.death and following.date() > person.death.date():
            following = None
        answer = window(person, t, days, following)
        if answer is not None:
            found.append((t, answer))
    return found


def in_hospital(person, rules, days=None):
    """Death in the stay, or with `days` a stay longer than that."""
    found = []
    for stay in stays(person):
        t = stay["in"] + dt.timedelta(hours=rules.hours_after_admission)
        if stay["out"] is None:
            continue
        end = min(stay["out"], person.death) if person.death and person.death >= stay["in"] else stay["out"]
        if end <= t or (person.death and person.death <= t) or not person.old_enough(t, rules.minimum_age_years):
            continue
        found.append((t, stay["died"] if days is None else end > stay["in"] + days * DAY))
    return found


def random_records(seed, subjects=40):
    """Rows (subject, time, code, visit) and ends of observation: hours or whole days, visits, loose events, stays."""
    rng = np.random.default_rng(seed)
    grain = [24, 1, 6][seed % 3]
    start = dt.datetime(2010, 1, 1)

    def instant(low, high):
        return start + dt.timedelta(hours=int(rng.integers(low * 24, max(high * 24, low * 24 + 1)) // grain * grain))

    rows, ends, visit = [], {}, 0
    for subject in range(1, subjects + 1):
        if rng.random() < 0.8:
            rows.append((subject, start - DAY * int(rng.integers(16 * 365, 40 * 365)), "MEDS_BIRTH", None))
        if rng.random() < 0.1:
            rows.append((subject, None, str(rng.choice(["HF", "GENDER//F"])), None))
        style = int(rng.integers(0, 3))
        for _ in range(rng.integers(1, 9)):
            visit += 1
            begin = instant(0, 60)
            ident = visit if rng.random() < 0.7 else None
            for _ in range(rng.integers(1, 4)):
                code = str(rng.choice(["A", "B.1", "B.2", "C", "HF.9", "LAB"], p=[0.3, 0.2, 0.15, 0.2, 0.05, 0.1]))
                rows.append(
                    (subject, begin + dt.timedelta(hours=int(rng.integers(0, 30)) // grain * grain), code, ident)
                )
        for _ in range(rng.integers(0, 6)):
            visit += 1
            begin = instant(0, 50)
            ident = visit if style == 0 else None
            admit, discharge = (
                ("VISIT//inpatient", "DISCHARGE//") if style < 2 else ("HOSPITAL_ADMISSION//X", "HOSPITAL_DISCHARGE//")
            )
            rows.append((subject, begin, admit, ident))
            if rng.random() < 0.9:
                leave = begin + dt.timedelta(hours=math.floor(rng.exponential(60)) // grain * grain)
                died = rng.random() < 0.05
                rows.append(
                    (subject, leave, discharge + (("died" if style < 2 else "DIED") if died else "home"), ident)
                )
                if died:
                    rows.append((subject, leave, "MEDS_DEATH", None))
                if rng.random() < 0.2:  # a transfer, or the same day again
                    rows.append(
                        (subject, leave + dt.timedelta(hours=int(rng.integers(0, 9)) // grain * grain), admit, None)
                    )
        if rng.random() < 0.2:
            rows.append((subject, instant(20, 70), "MEDS_DEATH", None))
        if rng.random() < 0.5:
            ends[subject] = instant(40, 90)
        if not any(t is not None and code not in ("MEDS_BIRTH",) for s, t, code, _ in rows if s == subject):
            rows.append((subject, start, "A", None))
    return rows, ends
