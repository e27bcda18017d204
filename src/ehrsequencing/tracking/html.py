"""HTML that cannot be injected: every string is escaped unless it was built by `element`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


class Html(str):
    """Markup made by this module, hence safe to embed."""

    __slots__ = ()


def element(name: str, *children: str | None, **attributes: object) -> Html:
    """An element with escaped attributes and children; None is left out, an `Html` child is kept as it is.

    A trailing underscore of an attribute is dropped and inner ones become hyphens.

    >>> element("p", "a < b", class_="note", data_n=3)
    '<p class="note" data-n="3">a &lt; b</p>'
    """
    names = {key: key.rstrip("_").replace("_", "-") for key in attributes}
    opening = "".join(f' {names[key]}="{escape(str(value))}"' for key, value in attributes.items() if value is not None)
    return Html(f"<{name}{opening}>{join(children)}</{name}>")


def join(parts: Iterable[str | None]) -> Html:
    """Parts one after the other, strings escaped."""
    return Html("".join(part if isinstance(part, Html) else escape(part) for part in parts if part is not None))


def table(
    caption: str,
    head: Sequence[str],
    rows: Iterable[Sequence[str | None]],
    *,
    text_columns: Sequence[int] = (0,),
    class_: str | None = None,
) -> Html:
    """A table that scrolls sideways on its own; the first cell of a row is its header, numbers stand to the right."""
    text = set(text_columns)

    def kind(index: int) -> str | None:
        return None if index in text else "num"

    header = element("tr", *(element("th", cell, scope="col", class_=kind(i)) for i, cell in enumerate(head)))
    body = []
    for row in rows:
        first, *others = row
        cells = [element("td", cell, class_=kind(i)) for i, cell in enumerate(others, start=1)]
        body.append(element("tr", element("th", first, scope="row"), *cells))
    inner = element(
        "table", element("caption", caption), element("thead", header), element("tbody", *body), class_=class_
    )
    return element("div", inner, class_="scroll", tabindex="0", role="region", aria_label=caption)


def sections(found: Sequence[tuple[str, str, Html | None]], lead: str) -> tuple[Html | None, Html]:
    """Links to the sections of a page, None where there are two at most, and its `main`.

    Args:
        found: Key, heading and content of each; without content a section is left out.
        lead: Key of the section that stands out.
    """
    shown = [(key, heading, content) for key, heading, content in found if content is not None]
    links = element("nav", *(element("a", text, href=f"#{key}") for key, text, _ in shown), aria_label="Sections")
    blocks = [
        element(
            "section",
            element("h2", heading, id=f"{key}-title"),
            content,
            id=key,
            aria_labelledby=f"{key}-title",
            class_="lead" if key == lead else None,
        )
        for key, heading, content in shown
    ]
    return links if len(shown) > 2 else None, element("main", *blocks)


def page(title: str, body: Html) -> str:
    """A whole document without any outside resource."""
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{CSS}</style>"
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'


CSS = """
:root{--bg:#f6f7f9;--card:#fff;--ink:#1c232b;--soft:#57626e;--line:#dfe3e8;--faint:#eef1f4;--accent:#23527c;
--good:#1f6f4a;--warn:#8a5a00;--s0:#23527c;--s1:#c05a1f;--s2:#2f8062;--s3:#84519c;--s4:#a47d17;--s5:#6b7580}
@media (prefers-color-scheme:dark){:root{--bg:#12161b;--card:#1a2027;--ink:#e4e8ec;--soft:#9ca8b4;--line:#303943;
--faint:#232b33;--accent:#7fb2e0;--good:#6fc59b;--warn:#e0b25e;--s0:#7fb2e0;--s1:#ee9a64;--s2:#6cc3a0;--s3:#c79bdb;
--s4:#d9b95a;--s5:#a3adb8}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
body{margin:0;background:var(--bg);color:var(--ink);
font:16px/1.6 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue","Liberation Sans",Arial,sans-serif}
main,header,footer{max-width:62rem;margin:0 auto;padding:0 1.25rem}
header{padding-top:2.75rem}
h1{font-size:clamp(1.5rem,4vw,2.1rem);line-height:1.2;margin:0 0 .6rem;letter-spacing:-.015em;overflow-wrap:anywhere}
h2{font-size:1.2rem;line-height:1.3;margin:0 0 .75rem;letter-spacing:-.005em}
h3{font-size:1rem;margin:1.75rem 0 .6rem}
h3:first-child{margin-top:0}
p{margin:0 0 .8rem;max-width:50rem;overflow-wrap:anywhere}
p:last-child{margin-bottom:0}
.meta{display:flex;flex-wrap:wrap;gap:.35rem 1.25rem;color:var(--soft);font-size:.875rem;margin:0;padding:0;
list-style:none}
.status{font-weight:600;color:var(--good)}
.status.warn{color:var(--warn)}
nav{margin-top:1.1rem;padding-top:.8rem;border-top:1px solid var(--line);display:flex;flex-wrap:wrap;
gap:.3rem 1.1rem;font-size:.875rem}
a{color:var(--accent);text-decoration:none}
a:hover,a:focus-visible{text-decoration:underline}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:1.5rem;margin:1.25rem 0}
section.lead{border-left:4px solid var(--accent)}
section.lead p{font-size:1.03rem}
p.small,section.lead p.small{font-size:.9rem;color:var(--soft)}
.note{color:var(--soft);font-size:.875rem;max-width:50rem}
.charts+.note{margin-top:.9rem}
.scroll{overflow-x:auto;margin:0 0 .9rem}
.scroll:last-child{margin-bottom:0}
.scroll:focus-visible{outline:2px solid var(--accent)}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
caption{max-width:calc(100vw - 5rem);text-align:left;color:var(--soft);font-size:.875rem;padding-bottom:.45rem}
th,td{padding:.5rem .75rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
th:first-child,td:first-child{padding-left:0}
tbody tr:last-child>*{border-bottom:0}
th:first-child{position:sticky;left:0;background:var(--card);z-index:1}
thead th{font-size:.8rem;font-weight:600;color:var(--soft);vertical-align:bottom;border-bottom-width:2px}
tbody th{font-weight:500;min-width:8rem;overflow-wrap:anywhere}
.num{text-align:right;white-space:nowrap}
.ci{display:block;color:var(--soft);font-size:.8rem}
.sub{display:block;color:var(--soft);font-size:.8rem;font-weight:400}
.best{font-weight:700;color:var(--good)}
.best .ci{font-weight:400}
table.strips td,table.strips th{vertical-align:middle}
table.strips td:nth-child(2),table.strips th:nth-child(2){width:42%;min-width:11rem}
.strip{position:relative;display:block;height:1.35rem;background:var(--faint);border-radius:4px;overflow:hidden}
.strip span{position:absolute;display:block}
.strip .bar{top:calc(50% - 1.5px);height:3px;background:var(--c);border-radius:2px}
.strip .dot{top:calc(50% - 5px);width:10px;height:10px;margin-left:-5px;border-radius:50%;background:var(--c)}
.strip .ref{top:0;bottom:0;width:0;border-left:1.5px dashed var(--soft)}
.strip .fill{top:0;bottom:0;left:0;background:var(--c);opacity:.85}
.strip.thin{height:.4rem;margin-top:.3rem;min-width:5.5rem}
.scale{position:relative;display:block;height:1.2rem;font-weight:400}
.scale span{position:absolute;transform:translateX(-50%)}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,21rem),1fr));gap:1.25rem}
.charts.small{grid-template-columns:repeat(auto-fill,minmax(min(100%,16rem),1fr))}
figure{margin:0;min-width:0}
figcaption{font-size:.9rem;font-weight:600;margin-bottom:.35rem;overflow-wrap:anywhere}
svg{display:block;width:100%;height:auto;max-width:34rem;overflow:visible}
svg text{fill:var(--soft);font-size:12px;font-variant-numeric:tabular-nums}
svg .grid{stroke:var(--line);stroke-width:1}
svg .axis{stroke:var(--soft);stroke-width:1}
svg .ref{stroke:var(--soft);stroke-width:1.2;stroke-dasharray:4 4;fill:none}
svg .line{stroke:var(--c);stroke-width:2;fill:none;stroke-linejoin:round;stroke-linecap:round}
svg .point{fill:var(--c)}
svg .whisker{stroke:var(--c);stroke-width:1.4}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1rem;font-size:.82rem;color:var(--soft);margin:.35rem 0 0;padding:0;
list-style:none}
.legend svg{display:inline-block;width:26px;height:10px;margin-right:.4rem;vertical-align:middle}
.c0{--c:var(--s0)}.c1{--c:var(--s1)}.c2{--c:var(--s2)}.c3{--c:var(--s3)}.c4{--c:var(--s4)}.c5{--c:var(--s5)}
.heat{background:color-mix(in srgb,var(--accent) calc(var(--h)*55%),transparent)}
.heat .ci{color:inherit}
ul.plain{margin:0;padding-left:1.15rem;max-width:50rem}
ul.plain li{margin-bottom:.4rem;overflow-wrap:anywhere}
pre{margin:0;padding:.9rem 1rem;background:var(--faint);border-radius:6px;font-size:.82rem;line-height:1.55;
white-space:pre-wrap;overflow-wrap:anywhere}
code,pre{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
details{margin-top:.6rem;font-size:.9rem}
summary{cursor:pointer;color:var(--accent)}
dl{display:grid;grid-template-columns:minmax(9rem,max-content) 1fr;gap:.3rem 1.5rem;margin:0;font-size:.9rem}
dt{color:var(--soft);overflow-wrap:anywhere}
dd{margin:0;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
footer{color:var(--soft);font-size:.82rem;padding-bottom:2.5rem}
@media (max-width:40rem){section{padding:1.1rem;border-radius:8px}header{padding-top:1.5rem}
dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:.5rem}body{font-size:15px}}
@media (max-width:40rem){table.strips thead{display:none}
.charts:not(.small) svg[role] text{font-size:15px}
table.strips tr{display:flex;flex-wrap:wrap;gap:.25rem .75rem;padding:.55rem 0;border-bottom:1px solid var(--line)}
table.strips tbody tr:last-child{border-bottom:0}
table.strips td,table.strips th{border:0;padding:0}
table.strips th{flex:1 1 8rem}
table.strips td:nth-child(2){order:9;flex:1 0 100%;width:auto;min-width:0}}
@media print{body{background:#fff}section{break-inside:avoid;border:0;padding:.5rem 0}nav{display:none}}
"""
