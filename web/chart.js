/** How are rows drawn? Options of Apache ECharts (a global of its own script) and one sentence that says the same. */

import { clock, compact, dayAndClock, figure, isNumber, list, number, shown, timeOf, words } from "./format.js";
import { TOP_SERIES } from "./query.js";

const DAY = 86400;
// What no window has, is zero for these kinds of measures; for the others it is unknown.
const ZERO_WHEN_ABSENT = new Set(["count", "sum", "distinct"]);

function colours() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).trim();
  const [ink, soft, line, panel, accent] = ["--ink", "--soft", "--line", "--panel", "--accent"].map(read);
  return { ink, soft, line, panel, accent, series: [1, 2, 3, 4, 5, 6].map((place) => read(`--s${place}`)) };
}

/** What both kinds of charts share. */
function frame(paint, tooltip) {
  return {
    animation: false,
    color: paint.series,
    textStyle: { fontFamily: getComputedStyle(document.body).fontFamily },
    tooltip: {
      renderMode: "richText",
      confine: true,
      backgroundColor: paint.panel,
      borderColor: paint.line,
      borderWidth: 1,
      padding: [6, 9],
      textStyle: { fontFamily: "inherit", color: paint.ink, fontSize: 12, lineHeight: 17 },
      shadowBlur: 0,
      shadowColor: "transparent",
      ...tooltip,
    },
  };
}

function axis(paint, label, more) {
  return {
    axisLine: { lineStyle: { color: paint.line } },
    axisTick: { show: false },
    axisLabel: { color: paint.soft, fontSize: 11, ...label },
    splitLine: { lineStyle: { color: paint.line, width: 1 } },
    ...more,
  };
}

const grid = (right, top) => ({
  left: 4,
  right,
  top,
  bottom: 4,
  outerBoundsMode: "same",
  outerBoundsContain: "axisLabel",
});

/** Group the rows into lines, the largest first: {lines: [[name, [[window start, value]]]], low, high}, in ms. */
function linesOf({ rows, by, measure, windows }, absent) {
  const groups = new Map();
  let [low, high] = [Infinity, -Infinity];
  for (const row of rows) {
    const start = timeOf(row.window_start);
    if (start === null) continue;
    low = Math.min(low, start);
    high = Math.max(high, start);
    const name = by ? shown(row[by]) : words(measure);
    if (!groups.has(name)) groups.set(name, new Map());
    groups.get(name).set(start, row[measure]);
  }
  const weight = (values) => [...values.values()].filter(isNumber).reduce((total, value) => total + value, 0);
  const ordered = [...groups].sort((a, b) => weight(b[1]) - weight(a[1]));
  const lines = ordered.map(([name, values]) => {
    const points = [];
    for (let start = low; start <= high; start += windows.step) points.push([start, values.get(start) ?? absent]);
    return [name, points];
  });
  return { lines, low, high };
}

function legend(paint, visible) {
  return {
    show: visible,
    type: "scroll",
    top: 0,
    left: 0,
    right: 0,
    itemWidth: 12,
    itemHeight: 3,
    itemGap: 14,
    icon: "rect",
    textStyle: { color: paint.ink, fontSize: 12 },
    pageIconColor: paint.accent,
    pageIconInactiveColor: paint.line,
    pageTextStyle: { color: paint.soft },
  };
}

function lineSentence({ by, measure, windows, cut }, lines, high, filling) {
  const groups = cut ? `, largest ${TOP_SERIES} groups` : "";
  const latest = lines.slice(0, TOP_SERIES).map(([name, points]) => [name, number(points.at(-1)[1])]);
  const values = by ? latest.map((pair) => pair.join(" ")).join(", ") : latest[0][1];
  const still = filling(high) ? ", still filling" : "";
  return `${words(measure)} per ${windows.every}${groups}; ${clock(high)} UTC${still}: ${values}`;
}

/** Lines over time, one for each group. */
function drawLines(drawing, kind, narrow) {
  const { by, span, windows, newest } = drawing;
  const paint = colours();
  const absent = ZERO_WHEN_ABSENT.has(kind) ? 0 : null;
  const { lines, low, high } = linesOf(drawing, absent);
  const filling = (start) => newest !== null && start + windows.step > newest;

  function tooltip(points) {
    const present = list(points).filter((point) => isNumber(point.value[1]));
    if (!present.length) return "";
    const start = present[0].value[0];
    const title = `${dayAndClock(start)} UTC${filling(start) ? "  still filling" : ""}`;
    return [title, ...present.map((point) => `${point.seriesName}  ${number(point.value[1])}`)].join("\n");
  }

  const time = (value) => (span > DAY ? dayAndClock(value).slice(5) : clock(value));
  const option = {
    ...frame(paint, {
      trigger: "axis",
      axisPointer: { lineStyle: { color: paint.soft, width: 1 } },
      formatter: tooltip,
    }),
    legend: legend(paint, Boolean(by)),
    grid: grid(12, by ? 34 : 14),
    xAxis: axis(paint, { hideOverlap: true, formatter: time }, {
      type: "time",
      min: windows.from,
      max: windows.from + span * 1000,
      splitNumber: narrow ? 3 : 6,
      splitLine: { show: false },
    }),
    yAxis: axis(paint, { formatter: compact }, {
      type: "value",
      min: absent === 0 ? 0 : undefined,
      scale: absent !== 0,
      splitNumber: 4,
      axisLine: { show: false },
    }),
    series: lines.map(([name, points]) => ({
      name,
      type: "line",
      data: points,
      showSymbol: high - low < 3 * windows.step,
      symbol: "circle",
      symbolSize: 6,
      lineStyle: { width: 1.6 },
      emphasis: { disabled: true },
      areaStyle: by ? undefined : { opacity: 0.1 },
    })),
  };
  return { option, sentence: lines.length ? lineSentence(drawing, lines, high, filling) : "" };
}

/** One bar for each group, the largest on top. */
function drawBars(drawing, narrow) {
  const { view, rows, by, measure, more } = drawing;
  const paint = colours();
  const dimensions = by ? by.split(",") : [];
  const label = (row) => dimensions.map((name) => shown(row[name])).join(" · ") || words(measure);
  const drawn = rows.filter((row) => isNumber(row[measure]));

  function tooltip(point) {
    const row = drawn[point.dataIndex];
    if (!row) return "";
    const present = list(view.measures).filter(({ name }) => row[name] !== undefined);
    return [label(row), ...present.map(({ name }) => `${words(name)}  ${figure(row[name])}`)].join("\n");
  }

  const names = { color: paint.ink, width: narrow ? 110 : 170, overflow: "truncate", interval: 0 };
  const option = {
    ...frame(paint, { trigger: "item", formatter: tooltip }),
    grid: grid(72, 6),
    xAxis: axis(paint, { hideOverlap: true, formatter: compact }, { type: "value", splitNumber: narrow ? 2 : 4 }),
    yAxis: axis(paint, names, { type: "category", inverse: true, data: drawn.map(label) }),
    series: [
      {
        type: "bar",
        data: drawn.map((row) => row[measure]),
        barMaxWidth: 18,
        itemStyle: { color: paint.accent, borderRadius: [0, 2, 2, 0] },
        emphasis: { disabled: true },
        label: {
          show: true,
          position: "right",
          color: paint.soft,
          fontSize: 11,
          formatter: (point) => number(point.value),
        },
      },
    ],
  };
  const [largest] = drawn;
  const detail = largest ? `; largest: ${label(largest)}, ${number(largest[measure])}` : "; no values yet";
  return { option, sentence: `${more ? "top " : ""}${rows.length} by ${words(measure)}${detail}` };
}

/** The option for ECharts, and the sentence below the chart, of what `query.ask` brought. */
export function draw(drawing, narrow) {
  const kind = list(drawing.view.measures).find(({ name }) => name === drawing.measure)?.kind;
  const { option, sentence } = drawing.windows.step ? drawLines(drawing, kind, narrow) : drawBars(drawing, narrow);
  return { option, sentence: drawing.rows.length ? sentence : "No rows in this range." };
}
