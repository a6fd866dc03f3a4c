// CSS of report.html. Private to report_page.cpp.
#pragma once

namespace hanok {

inline constexpr const char* kReportColoursLight = R"(:root{--ground:#f6f7fa;--card:#fff;--ink:#1c2330;--soft:#5b667a;
--line:#dde2ea;--accent:#2255bb;--heat:34,85,187;--good:#1d7f4e;--bad:#c0392b;--good-bg:#e6f4ec;--bad-bg:#fbeae8;
--code:#f0f2f6}
)";

inline constexpr const char* kReportColoursDark = R"(:root{--ground:#10141b;--card:#171c25;--ink:#e4e8f0;--soft:#98a3b8;
--line:#2b3342;--accent:#7fa6f8;--heat:110,155,248;--good:#5fd39a;--bad:#ff8b80;--good-bg:#16301f;--bad-bg:#381d1c;
--code:#10141b}
)";

inline constexpr const char* kReportLayout = R"(*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1120px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:28px;line-height:1.2;margin:0;overflow-wrap:anywhere}
h2{font-size:19px;margin:36px 0 12px}
p{margin:4px 0 12px}
.soft,figcaption,th{color:var(--soft)}
.badge{display:inline-block;padding:2px 10px;border-radius:99px;border:1px solid var(--line);font-size:13px;
vertical-align:4px;margin-left:8px}
.badge.good{color:var(--good);background:var(--good-bg);border-color:transparent}
.badge.bad{color:var(--bad);background:var(--bad-bg);border-color:transparent}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(132px,1fr));gap:12px;margin-top:20px}
.tile,.card,.panel{background:var(--card);border:1px solid var(--line);border-radius:10px}
.tile{padding:12px 12px}
.tile b{display:block;font-size:22px;line-height:1.25;font-weight:650;font-variant-numeric:tabular-nums}
.tile span{display:block;font-size:13px;color:var(--soft)}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:12px}
.charts .panel{padding:6px 8px}
.charts .wide{grid-column:1/-1}
.charts.small{grid-template-columns:repeat(auto-fit,minmax(min(100%,300px),1fr));margin-top:12px}
.chart{display:block;width:100%;height:auto}
.panel{padding:14px 16px;overflow-x:auto}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,320px),1fr));gap:12px;align-items:start}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:14px}
th,td{padding:4px 10px;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th{font-weight:500}
th:first-child,td:first-child{text-align:left;padding-left:0}
.text{text-align:left}
td.text{white-space:normal;overflow-wrap:anywhere}
tr:last-child td{border-bottom:0}
.heat td{min-width:54px;text-align:center;border:2px solid var(--card);border-radius:6px;
background:rgba(var(--heat),calc(var(--share)*.55))}
.heat td.right{outline:1.5px solid var(--accent);outline-offset:-3px}
.heat th{border:0;text-align:center}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,310px),1fr));gap:12px}
.card{padding:14px;border-top:3px solid var(--line);overflow-wrap:anywhere}
.card.good{border-top-color:var(--good)}
.card.bad{border-top-color:var(--bad)}
.card header{display:flex;justify-content:space-between;gap:8px;font-size:13px;color:var(--soft)}
.card header b{color:var(--soft)}
.card.good header b{color:var(--good)}
.card.bad header b{color:var(--bad)}
.pictures{display:flex;flex-wrap:wrap;gap:6px;margin:10px 0}
.pictures img{height:112px;max-width:100%;object-fit:contain;border-radius:6px;border:1px solid var(--line);
background:var(--code)}
.question{white-space:pre-wrap;margin:8px 0 10px;font-weight:550;max-height:16em;overflow:auto}
.choices{list-style:none;margin:0;padding:0}
.choices li{display:grid;grid-template-columns:1.2em 1fr auto;gap:6px;padding:3px 8px;border-radius:6px;margin-bottom:3px;
background:linear-gradient(to right,rgba(var(--heat),.16) calc(var(--share)*100%),transparent 0)}
.choices .p{font-variant-numeric:tabular-nums;color:var(--soft);white-space:nowrap}
.choices .gold{box-shadow:inset 0 0 0 1.5px var(--good)}
.choices .gold i{color:var(--good)}
.choices .wrong{box-shadow:inset 0 0 0 1.5px var(--bad)}
.choices .wrong i{color:var(--bad)}
.choices i{font-style:normal;font-size:12px;margin-left:6px;white-space:nowrap}
pre{background:var(--code);border:1px solid var(--line);border-radius:8px;padding:12px 14px;margin:6px 0 14px;
overflow:auto;font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.panel pre{margin-bottom:4px}
details>pre{max-height:34em}
summary{cursor:pointer;color:var(--accent)}
footer{margin-top:40px;font-size:13px;color:var(--soft)}
)";

}  // namespace hanok
