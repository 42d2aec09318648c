"""The look that all pages share: system fonts, light and dark, readable on a phone and on paper."""

BASE_STYLE = """
:root {
  color-scheme: light dark;
  --page: #fcfcfb; --card: #ffffff; --ink: #1d1f23; --soft: #5c626b; --rule: #dedfe2; --faint: #f1f2f3; --link: #1a5fb4;
  --good: #1a7f4b; --bad: #b3382c; --good-back: #e3f3e9; --bad-back: #fbe8e5; --mark: #fff0b8;
  --s1: #2f6fb7; --s2: #d1711f; --s3: #2a8c6b; --s4: #9a4fa3; --s5: #b08a12; --s6: #c04a6b; --s7: #4f9fc4; --s8: #7a7f87;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #15171a; --card: #1c1f23; --ink: #e6e7e9; --soft: #a0a6af; --rule: #363a41; --faint: #23262b; --link: #82b4f0;
    --good: #63c390; --bad: #ef8a7d; --good-back: #1c3527; --bad-back: #40231f; --mark: #4d431a;
    --s1: #6ba6e6; --s2: #ec9a55; --s3: #58bd98; --s4: #c78ad0; --s5: #d5b24a; --s6: #e5809d; --s7: #86c9e8; --s8: #a3a8b0;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 62rem; background: var(--page); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; overflow-wrap: break-word;
}
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; font-weight: 650; }
h2 { font-size: 1.2rem; margin: 2.75rem 0 .5rem; padding-top: .9rem; border-top: 1px solid var(--rule); font-weight: 650; }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; font-weight: 650; }
p { margin: .5rem 0; max-width: 46rem; }
a { color: var(--link); text-decoration-thickness: 1px; text-underline-offset: .15em; }
.soft { color: var(--soft); }
.small { font-size: .875rem; }
.text { white-space: pre-wrap; unicode-bidi: isolate; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem .3rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--rule); }
th { font-weight: 600; color: var(--soft); font-size: .8125rem; vertical-align: bottom; }
th.num, td.num { text-align: right; white-space: nowrap; }
tbody tr:last-child > * { border-bottom: 0; }
tr.total td { font-weight: 600; border-top: 1px solid var(--soft); }
summary { cursor: pointer; }
.good { color: var(--good); }
.bad { color: var(--bad); }
pre { background: var(--faint); padding: .75rem 1rem; overflow-x: auto; border-radius: 4px; }
pre { font-size: .8125rem; line-height: 1.45; }
@media print {
  :root {
    color-scheme: light; --page: #fff; --card: #fff; --ink: #000; --soft: #444; --rule: #bbb; --faint: #f4f4f4; --link: #000;
    --good: #146c3d; --bad: #9a2b20; --good-back: #e3f3e9; --bad-back: #fbe8e5; --mark: #fff0b8;
    --s1: #2f6fb7; --s2: #d1711f; --s3: #2a8c6b; --s4: #9a4fa3; --s5: #b08a12; --s6: #c04a6b; --s7: #4f9fc4; --s8: #7a7f87;
  }
  body { max-width: none; padding: 0; font-size: 10pt; }
  h2, h3 { break-after: avoid; }
  figure, tr, .example { break-inside: avoid; }
  nav { display: none; }
  pre { white-space: pre-wrap; }
}
"""
