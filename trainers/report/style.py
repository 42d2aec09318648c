"""What the report's page adds to the shared style."""

REPORT_STYLE = """
:root { --s9: #5d6bb5; }
@media (prefers-color-scheme: dark) { :root { --s9: #98a5ea; } }
header { margin-bottom: 1.25rem; }
nav { font-size: .9rem; margin: 1rem 0 0; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; }
.headline td, .headline th { padding-right: 1.6rem; }
.headline table { font-size: 1rem; }
figure { margin: 1rem 0; max-width: 38rem; }
figcaption { font-size: .875rem; font-weight: 600; }
figure > svg { display: block; width: 100%; height: auto; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 0 2rem; align-items: end; }
svg text { fill: var(--soft); font-size: 11.5px; font-variant-numeric: tabular-nums; }
.grid { stroke: var(--rule); stroke-width: 1; }
.bar { stroke-width: 1.5; }
.thread { fill: none; stroke-width: 1.5; opacity: .55; }
.diagonal { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 4 4; }
.hollow { fill: var(--page); stroke-width: 1.8; }
.neutral { stroke: var(--soft); }
.layer { stroke: var(--page); stroke-width: 1; }
.see { fill-opacity: .75; }
.legend { display: flex; flex-wrap: wrap; gap: .15rem 1rem; font-size: .8125rem; color: var(--soft); margin: .35rem 0 .3rem; }
.legend span { display: inline-flex; align-items: center; gap: .35rem; }
.example { border: 1px solid var(--rule); border-radius: 5px; background: var(--card); margin: .75rem 0; padding: .75rem 1rem; }
.example > p { margin: 0 0 .5rem; }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: 0 1.25rem; }
.sides h4 { margin: 0 0 .3rem; font-size: .8125rem; font-weight: 600; color: var(--soft); }
.line { font-size: .875rem; padding: .08rem .35rem; min-height: 1.4rem; border-radius: 2px; }
.line { border-left: 2px solid transparent; }
.line.differs { background: var(--mark); border-left-color: var(--s5); border-radius: 0 2px 2px 0; }
.badge { font-size: .8125rem; font-weight: 600; border-radius: 3px; padding: .05rem .4rem; margin-right: .4rem; }
.badge.good { background: var(--good-back); }
.badge.bad { background: var(--bad-back); }
.fold > summary { font-weight: 600; margin: .6rem 0; }
@media (max-width: 34rem) {
  body { padding: 1rem .9rem 3rem; }
  .sides { gap: 0 .6rem; }
  .line { padding: .08rem .2rem; font-size: .8125rem; }
  .headline table { display: block; font-size: .85rem; }
  .headline thead, .headline tbody { display: block; }
  .headline tr { display: grid; grid-template-columns: 1fr 3.9rem 3.9rem 9.7rem; border-bottom: 1px solid var(--rule); }
  .headline td, .headline th { padding: .3rem 0 .1rem .7rem; border: 0; }
  .headline th:first-child, .headline td:first-child { padding-left: 0; }
  .headline td:last-child { grid-column: 1 / -1; text-align: right; padding: 0 0 .3rem; }
  .headline th:last-child { display: none; }
  svg text { font-size: 14px; }
}
@media print { :root { --s9: #5d6bb5; } }
"""
