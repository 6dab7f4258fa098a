/* style.c: the style sheet of the report: colours for light and dark, type, grid, tables, paper.
 * Colour scales run evenly in lightness, so they stay in order for every kind of sight and in grey; more is
 * always further from the background. Lines have a contrast of at least 3, letters of 4.5.
 * Source of the scales: our own path through Oklab (Ottosson 2020) from yellow over teal to violet.
 */
#include "report/page.h"

/* One rule or a few a line; no ampersand and no less-than sign, which XML would read. */
static const char *const line[] = {
    ":root{color-scheme:light dark;--paper:#fbfaf7;--panel:#fff;--ink:#1b2125;--soft:#58636c;"
    "--rule:#dfddd5;--grid:#e9e7e0;\n",
    "--accent:#086a72;--tint:#0a7c8424;--bar:#b9bfc2;--note:#8a4b00;--shade:#1b212529;\n",
    "--h0:#f5f5ae;--h1:#b3e79e;--h2:#62d6a1;--h3:#0fbbad;--h4:#069bac;--h5:#097da5;--h6:#045ca7;"
    "--h7:#323b88;--h8:#362061;\n",
    "--d0:#07957c;--d1:#048381;--d2:#087280;--d3:#00607f;--d4:#014e80;--d5:#1a3781;--d6:#2c2171;"
    "--d7:#32095a;\n",
    "--sans:system-ui,-apple-system,\"Segoe UI\",Roboto,\"Helvetica Neue\",Arial,sans-serif;\n",
    "--mono:ui-monospace,SFMono-Regular,Menlo,Consolas,\"DejaVu Sans Mono\",monospace}\n",
    "@media (prefers-color-scheme:dark){:root{--paper:#14181b;--panel:#1b2125;--ink:#e5e8ea;"
    "--soft:#9da8b0;--rule:#333c43;--grid:#272f35;\n",
    "--accent:#5fcdc4;--tint:#5fcdc42e;--bar:#56626b;--note:#f0b660;--shade:#000000a0;\n",
    "--h0:#362061;--h1:#323b88;--h2:#045ca7;--h3:#097da5;--h4:#069bac;--h5:#0fbbad;--h6:#62d6a1;"
    "--h7:#b3e79e;--h8:#f5f5ae;\n",
    "--d0:#8071c8;--d1:#648cdd;--d2:#3aa7e3;--d3:#05c0d8;--d4:#32d5c4;--d5:#78e3a8;--d6:#b9ea8e;"
    "--d7:#f5ed81;}}\n",
    "*{box-sizing:border-box}\n",
    "html{-webkit-text-size-adjust:100%;text-size-adjust:100%;scroll-padding-top:1rem}\n",
    "body{margin:0 auto;max-width:1440px;padding:2.5rem clamp(1rem,4vw,3.5rem) 3rem;"
    "background:var(--paper);color:var(--ink);font:1rem/1.55 var(--sans)}\n",
    "h1,h2,h3,p,ul,dl,dd,figure{margin:0}\n",
    "h1{font-size:clamp(1.9rem,4.5vw,2.75rem);line-height:1.12;letter-spacing:-.02em;"
    "overflow-wrap:anywhere}\n",
    "h2{font-size:1.45rem;line-height:1.25;letter-spacing:-.01em;margin-bottom:.6rem}\n",
    "h3{font-size:.95rem;line-height:1.35}\n",
    "a{color:var(--accent)}\n",
    "code,kbd,pre{font-family:var(--mono);font-size:.92em}\n",
    "small{color:var(--soft);font-size:.8em}\n",
    "section{margin-top:3.2rem;padding-top:1.6rem;border-top:1px solid var(--rule)}\n",
    ".kicker{color:var(--accent);font-size:.82rem;font-weight:600;letter-spacing:.06em;"
    "text-transform:uppercase;margin-bottom:.35rem}\n",
    ".lead{font-size:1.12rem;line-height:1.5;max-width:62ch;margin-top:.7rem;color:var(--soft)}\n",
    ".note,.missing,.legend{font-size:.9rem;color:var(--soft);margin-bottom:1rem}\n",
    ".note,.missing{max-width:88ch}\n",
    ".missing{color:var(--note)}\n",
    ".overview{display:grid;grid-template-columns:minmax(0,1.55fr) minmax(0,1fr);gap:1.6rem 3rem;"
    "align-items:start;margin-top:1.8rem}\n",
    ".panel{background:var(--panel);border:1px solid var(--rule);border-radius:10px;"
    "padding:1.1rem 1.2rem}\n",
    ".panel .missing{margin:.6rem 0 0}\n",
    ".panel figcaption{padding-bottom:.7rem}\n",
    ".facts{display:grid;grid-template-columns:repeat(3,minmax(0,1fr));gap:1rem "
    "1.4rem}\n",
    ".facts dt{color:var(--soft);font-size:.8rem}\n",
    ".facts dd{font-size:1.4rem;font-weight:600;line-height:1.25;letter-spacing:-.01em;"
    "font-variant-numeric:tabular-nums}\n",
    ".facts small{font-weight:400;font-size:.8rem;letter-spacing:0;white-space:nowrap}\n",
    ".findings{padding-left:1.1rem;margin-top:1.4rem;max-width:80ch}\n",
    ".findings li{margin:.3rem 0}\n",
    ".findings li::marker{color:var(--accent)}\n",
    "nav{display:flex;flex-wrap:wrap;gap:.3rem 1.2rem;margin-top:1.8rem;font-size:.92rem}\n",
    "nav a{text-underline-offset:.25em;padding:.2rem 0}\n",
    ".multiples{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr));"
    "gap:1.9rem 2rem;align-items:start}\n",
    "figcaption{padding-bottom:.35rem}\n",
    "figcaption p{font-size:.8rem;line-height:1.35;color:var(--soft)}\n",
    "svg{display:block;width:100%;height:auto;max-width:560px;overflow:visible;font:11px "
    "var(--sans);fill:var(--ink)}\n",
    "svg text{font-variant-numeric:tabular-nums}\n",
    ".axis text{fill:var(--soft);font-size:10.5px}\n",
    ".end{text-anchor:end}\n",
    ".mid{text-anchor:middle}\n",
    ".grid,.base,.tick,.frame{fill:none;stroke:var(--grid)}\n",
    ".base,.tick,.frame{stroke:var(--soft);stroke-opacity:.55}\n",
    ".line{fill:none;stroke-width:1.7;stroke-linejoin:round;stroke-linecap:round}\n",
    ".main{stroke:var(--accent)}\n",
    ".band{fill:var(--tint);stroke:none}\n",
    ".marks circle{fill:var(--paper);stroke:var(--ink);stroke-width:1.6}\n",
    ".rule path{fill:none;stroke:var(--soft);stroke-dasharray:3 3}\n",
    ".rule text{fill:var(--soft);font-size:10.5px;paint-order:stroke;stroke:var(--paper);"
    "stroke-width:3px}\n",
    ".cells path{fill:none;stroke:var(--c);stroke-width:1.02;shape-rendering:crispEdges}\n",
    ".cells path.none{stroke:var(--soft);stroke-width:.14}\n",
    ".hint{fill:transparent}\n",
    ".hint:hover{stroke:var(--ink)}\n",
    ".ours rect{fill:var(--accent)}\n",
    ".ours text{font-weight:600}\n",
    ".other rect{fill:var(--bar)}\n",
    ".overview svg{font-size:12.5px}\n",
    ".h0{--c:var(--h0)}.h1{--c:var(--h1)}.h2{--c:var(--h2)}.h3{--c:var(--h3)}.h4{--c:var(--h4)}"
    ".h5{--c:var(--h5)}.h6{--c:var(--h6)}.h7{--c:var(--h7)}.h8{--c:var(--h8)}\n",
    ".d0{--c:var(--d0);stroke:var(--d0)}.d1{--c:var(--d1);stroke:var(--d1)}.d2{--c:var(--d2);"
    "stroke:var(--d2)}.d3{--c:var(--d3);stroke:var(--d3)}.d4{--c:var(--d4);stroke:var(--d4)}"
    ".d5{--c:var(--d5);stroke:var(--d5)}.d6{--c:var(--d6);stroke:var(--d6)}.d7{--c:var(--d7);"
    "stroke:var(--d7)}\n",
    ".key{white-space:nowrap;margin-right:.55rem;color:var(--ink)}\n",
    ".key i{display:inline-block;width:1.15em;height:1.15em;margin-right:.3em;"
    "vertical-align:-.2em;background:var(--c);outline:1px solid var(--rule);outline-offset:-1px}\n",
    ".key i.swatch{height:.3em;width:1.5em;vertical-align:.2em;outline:0;border-radius:2px}\n",
    ".key i.none{background:linear-gradient(transparent 44%,var(--soft) 44% 56%,transparent 56%)}\n",
    ".wide{overflow-x:auto;max-width:100%;" /* a shadow on the side that has more to scroll to */
    "background:linear-gradient(90deg,var(--paper) 40%,transparent) left/2rem 100% no-repeat local,"
    "linear-gradient(270deg,var(--paper) 40%,transparent) right/2rem 100% no-repeat local,"
    "linear-gradient(90deg,var(--shade),transparent) left/.8rem 100% no-repeat scroll,"
    "linear-gradient(270deg,var(--shade),transparent) right/.8rem 100% no-repeat scroll}\n",
    ".wide:focus-visible,a:focus-visible,summary:focus-visible{outline:2px solid var(--accent);"
    "outline-offset:2px}\n",
    "table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums}\n",
    "caption{text-align:left;color:var(--soft);font-size:.8rem;padding:.2rem 0 .4rem}\n",
    "th,td{padding:.42rem .9rem .42rem 0;text-align:left;vertical-align:top;border-bottom:1px "
    "solid var(--rule)}\n",
    "thead th{font-size:.8rem;line-height:1.3;font-weight:600;color:var(--soft);"
    "vertical-align:bottom}\n",
    ".numbers td,.numbers th{text-align:right;padding-left:.7rem;padding-right:.7rem}\n",
    ".numbers th:first-child{text-align:left;padding-left:0}\n",
    ".numbers .word,.numbers thead th:last-child{text-align:left;min-width:7rem}\n",
    ".numbers td{white-space:nowrap}\n",
    ".share{position:relative;width:7.6rem;min-width:7.6rem}\n",
    ".share span{position:absolute;left:.35rem;bottom:.12rem;height:3px;max-width:calc(100% - "
    ".7rem);background:var(--accent);border-radius:2px}\n",
    ".tokens{width:100%}\n",
    ".tokens td:nth-child(2){white-space:nowrap}\n",
    ".chips{list-style:none;padding:0;display:grid;grid-template-columns:repeat(6,minmax(0,1fr));gap:.35rem "
    ".8rem}\n",
    ".chips li{white-space:nowrap}\n",
    "@media (max-width:1000px){.chips{grid-template-columns:repeat(3,minmax(0,1fr))}}\n",
    "@media (max-width:480px){.chips{grid-template-columns:repeat(2,minmax(0,1fr))}}\n",
    ".tokens caption{position:absolute;clip-path:inset(50%);height:1px;width:1px;overflow:hidden}\n",
    ".chips small{margin-left:.35em}\n",
    "kbd{display:inline-block;min-width:1.7em;padding:0 .35em;margin-right:.4em;"
    "text-align:center;background:var(--panel);border:1px solid var(--rule);border-radius:4px;"
    "color:var(--ink)}\n",
    "details{margin-top:.9rem}\n",
    "summary{font-weight:600;cursor:pointer;padding:.2rem 0}\n",
    ".sample{margin:0;padding:1.1rem 1.3rem;background:var(--panel);border:1px solid var(--rule);"
    "border-radius:10px;max-width:88ch;white-space:pre-wrap;overflow-wrap:anywhere;"
    "font-size:.9rem;line-height:1.6}\n",
    ".columns{columns:3 22rem;column-gap:2.5rem}\n",
    ".columns .group{break-inside:avoid;margin-bottom:1.2rem}\n",
    ".columns summary{font-size:.88rem;font-weight:400;color:var(--soft)}\n",
    ".columns table{width:100%}\n",
    ".columns th{width:55%}\n",
    ".settings caption{font-weight:600;color:var(--ink);font-size:.95rem}\n",
    ".settings tbody th{font-weight:400;color:var(--soft)}\n",
    ".settings td{overflow-wrap:anywhere;min-width:8rem}\n",
    "footer{margin-top:3rem;font-size:.82rem;color:var(--soft)}\n",
    "@media (max-width:820px){.overview{grid-template-columns:minmax(0,1fr)}"
    "body{padding-top:1.6rem}section{margin-top:2.4rem}}\n",
    "@media (max-width:560px){.facts{grid-template-columns:repeat(2,minmax(0,1fr))}.tokens "
    "thead{display:none}.tokens tr{display:grid;grid-template-columns:2.4rem 1fr;"
    "border-bottom:1px solid var(--rule)}.tokens td,.tokens th{border:0}.tokens "
    "td:nth-child(3){grid-column:1/-1;padding-top:0}}\n",
    "@media print{:root{--paper:#fff}body{max-width:none;padding:0;font-size:10pt}"
    "nav{display:none}figure,tr,.panel{break-inside:avoid}h2,h3{break-after:avoid}"
    ".wide{overflow:visible;background:none}.chips{grid-template-columns:repeat(6,minmax(0,1fr));font-size:"
    "8pt}.multiples{grid-template-columns:repeat(3,1fr);gap:1rem}svg,.key i,.share "
    "span{-webkit-print-color-adjust:exact;print-color-adjust:exact}"
    "details:not([open])::details-content{content-visibility:visible;block-size:auto}}\n",
};

void moelm_style_write(moelm_html *html) {
    moelm_html_put(html, "<style>\n");
    for (size_t i = 0; i < sizeof line / sizeof *line; ++i) moelm_html_put(html, line[i]);
    moelm_html_put(html, "</style>\n");
}
