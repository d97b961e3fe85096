"use strict";
// The charts of a page: one uPlot for each figure, with one cursor and one zoom for all of them.
(() => {
  const data = JSON.parse(document.getElementById("chart-data").textContent);
  const reset = document.getElementById("reset");
  const HEIGHT = 230, COLORS = 8;
  // All lines of a chart share their x; `values` is null where a line has no point.
  for (const chart of data) {
    chart.x = [...new Set(chart.series.flatMap(line => line.x))].sort((a, b) => a - b);
    for (const line of chart.series) {
      const at = new Map(line.x.map((x, i) => [x, line.y[i]]));
      line.values = chart.x.map(x => at.get(x) ?? null);
    }
  }
  const END = Math.max(0, ...data.flatMap(chart => chart.x.slice(-1))) || 1;
  let plots = [], zooming = false;

  const color = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const paint = number => color(`--c${number % COLORS}`);

  function shown(value, unit) {
    if (value == null) return "-";
    const size = Math.abs(value);
    const text = size >= 1000 ? Math.round(value).toLocaleString("en")
      : unit === "%" ? value.toFixed(2)
      : size && size < 0.001 ? value.toExponential(2)
      : String(Number(value.toPrecision(4)));
    return unit === "%" ? `${text}%` : text;
  }

  // The index at or nearest to `index` where a line has a value: lines have points at different x. Null more
  // than half an epoch beyond its ends.
  function nearest(xs, values, index) {
    if (values[index] != null) return index;
    let left = index, right = index;
    while (left >= 0 && values[left] == null) left--;
    while (right < xs.length && values[right] == null) right++;
    const near = at => Math.abs(xs[at] - xs[index]) <= 0.5 ? at : null;
    if (left < 0) return right < xs.length ? near(right) : null;
    if (right >= xs.length) return near(left);
    return xs[index] - xs[left] <= xs[right] - xs[index] ? left : right;
  }

  function cumulative(series) {
    const sums = [];
    series.forEach((line, i) => sums.push(line.values.map((v, j) => v == null ? null : v + (i ? sums[i - 1][j] : 0))));
    return sums;
  }

  function bestOf(chart, line) {
    const found = line.values.map((v, i) => [v, i]).filter(([v]) => v != null);
    return found.reduce((a, b) => (chart.lowIsBest ? b[0] < a[0] : b[0] > a[0]) ? b : a);
  }

  function drawBest(plot, chart) {
    const marked = chart.series.filter(line => line.role === "marked");
    if (marked.length !== 1) return;
    const [value, index] = bestOf(chart, marked[0]), { ctx, bbox } = plot;
    const x = plot.valToPos(chart.x[index], "x", true), y = plot.valToPos(value, "y", true);
    if (x < bbox.left || x > bbox.left + bbox.width) return;
    const ratio = devicePixelRatio, below = y - bbox.top < 22 * ratio;
    ctx.save();
    ctx.font = `600 ${12 * ratio}px system-ui, sans-serif`;
    ctx.textAlign = x > bbox.left + bbox.width - 50 * ratio ? "right" : "center";
    ctx.fillStyle = paint(marked[0].color);
    ctx.strokeStyle = color("--card");
    ctx.lineWidth = 4 * ratio;
    ctx.lineJoin = "round";
    const place = [shown(value, chart.unit), x, below ? y + 18 * ratio : y - 9 * ratio];
    ctx.strokeText(...place);
    ctx.fillText(...place);
    ctx.restore();
  }

  function seriesOf(chart, line) {
    const stroke = paint(line.color), several = chart.x.length > 1;
    const marked = line.role === "marked", area = line.role === "area";
    return {
      label: line.label,
      stroke: line.role === "faint" ? stroke + "b0" : stroke,
      width: marked ? 2 : line.role === "faint" ? 1.25 : area ? 0 : 1.5,
      fill: area ? stroke : undefined,
      dash: line.color >= COLORS ? [6, 4] : undefined,
      spanGaps: true,
      points: { show: !area && (marked && line.values.filter(v => v != null).length <= 60 || !several), size: 6, fill: stroke },
      value: (plot, _, number, index) => index == null ? "-" : shown(plot.raw[number].values[index], chart.unit),
    };
  }

  function optionsOf(chart, lines, width) {
    const axis = {
      stroke: color("--muted"), font: "12px system-ui, sans-serif",
      grid: { stroke: color("--line"), width: 1 }, ticks: { stroke: color("--line"), width: 1, size: 4 },
    };
    const last = [chart.x.length - 1, ...lines.map(line => line.values.findLastIndex(v => v != null))];
    return {
      width, height: HEIGHT, padding: [12, 14, 0, 0],
      scales: {
        x: { time: false, auto: false, min: 0, max: END, range: (_, low, high) => [low, high] },
        y: {
          range: (_, low, high) => {
            if (chart.series[0].role === "area") return [0, 100];
            if (low == null) return [0, 1];
            const pad = (high - low || Math.abs(high) || 1) * 0.08;
            return [chart.zero ? 0 : low - pad, high + pad];
          },
        },
      },
      axes: [
        { ...axis, size: 30, space: 60, values: (_, ticks) => ticks.map(tick => shown(tick, "")) },
        { ...axis, size: 62, space: 34, values: (_, ticks) => ticks.map(tick => chart.unit === "%" ? `${Number(tick.toPrecision(4))}%` : shown(tick, "")) },
      ],
      series: [
        { label: "epoch", value: (_, v, __, index) => index == null ? "-" : shown(chart.x[index], "") },
        ...lines.map(line => seriesOf(chart, line)),
      ],
      cursor: {
        y: false,
        drag: { x: true, y: false },
        bind: { dblclick: () => () => { resetZoom(); return null; } },
        points: { size: 7 },
        dataIdx: (plot, number, index) => number === 0 ? index : nearest(chart.x, plot.raw[number].values, index),
        sync: { key: "epochs", setSeries: false, scales: ["x", null], filters: { pub: type => type === "mousemove" || type === "mouseleave" } },
      },
      hooks: {
        draw: [plot => drawBest(plot, chart)],
        setScale: [(plot, key) => key === "x" && zoomAll(plot)],
        setCursor: [plot => plot.cursor.idx == null && plot.setLegend({ idxs: last }, false)],
        ready: [plot => plot.setLegend({ idxs: last }, false)],
      },
    };
  }

  function zoomAll(source) {
    if (zooming || !plots.includes(source)) return;
    zooming = true;
    const { min, max } = source.scales.x;
    plots.filter(plot => plot !== source).forEach(plot => plot.setScale("x", { min, max }));
    if (reset) reset.hidden = min <= 0 && max >= END;
    zooming = false;
  }

  function resetZoom() {
    if (plots.length) plots[0].setScale("x", { min: 0, max: END });
  }

  function zoom(plot, factor) {
    const { min, max } = plot.scales.x, xs = plot.data[0];
    const at = plot.cursor.idx == null ? (min + max) / 2 : xs[plot.cursor.idx];
    plot.setScale("x", {
      min: Math.max(0, at - (at - min) * factor), max: Math.min(END, at + (max - at) * factor),
    });
  }

  function onKey(event, figure) {
    const plot = figure.plot, xs = plot.data[0], { min, max } = plot.scales.x;
    const inside = [...xs.keys()].filter(i => xs[i] >= min && xs[i] <= max);
    const at = inside.indexOf(plot.cursor.idx), step = event.shiftKey ? 10 : 1;
    const moves = {
      ArrowLeft: at < 0 ? inside.length - 1 : at - step, ArrowRight: at < 0 ? 0 : at + step, Home: 0, End: inside.length - 1,
    };
    if (event.key in moves) {
      const index = inside[Math.max(0, Math.min(inside.length - 1, moves[event.key]))];
      plot.setCursor({ left: plot.valToPos(xs[index], "x"), top: 10 });
      figure.querySelector(".spoken").textContent =
        [...figure.querySelectorAll(".u-series")]
          .map(row => `${row.querySelector(".u-label").textContent}: ${row.querySelector(".u-value").textContent}`).join(", ");
    } else if (event.key === "+" || event.key === "=") zoom(plot, 0.5);
    else if (event.key === "-") zoom(plot, 2);
    else if (event.key === "0" || event.key === "Escape") resetZoom();
    else return;
    event.preventDefault();
  }

  function draw(figure, chart) {
    const place = figure.querySelector(".plot");
    const area = chart.series[0].role === "area";
    // Areas are drawn from the largest sum down, so that each covers a part of the one before.
    const lines = area ? [...chart.series].reverse() : chart.series;
    const values = area ? cumulative(chart.series).reverse() : lines.map(line => line.values);
    const options = optionsOf(chart, lines, place.clientWidth);
    const plot = new uPlot(options, [chart.x, ...values], (self, init) => {
      self.raw = [null, ...lines];
      place.append(self.root);
      init();
    });
    plot.over.addEventListener("pointermove", event => {
      if (event.pointerType === "touch") plot.setCursor({ left: event.offsetX, top: event.offsetY });
    });
    figure.plot = plot;
    return plot;
  }

  const figures = [...document.querySelectorAll("figure.chart")]
    .map(figure => [figure, data.find(chart => chart.key === figure.dataset.chart)]);

  function drawAll() {
    plots.forEach(plot => plot.destroy());
    plots = [];
    plots = figures.map(([figure, chart]) => draw(figure, chart));
    if (reset) reset.hidden = true;
  }

  drawAll();
  figures.forEach(([figure]) => figure.addEventListener("keydown", event => onKey(event, figure)));
  if (reset) reset.addEventListener("click", resetZoom);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  const sizes = new ResizeObserver(entries => entries.forEach(({ target, contentRect }) => {
    const plot = target.closest("figure").plot;
    if (plot && contentRect.width && Math.abs(contentRect.width - plot.width) >= 1) plot.setSize({ width: contentRect.width, height: HEIGHT });
  }));
  figures.forEach(([figure]) => sizes.observe(figure.querySelector(".plot")));
})();
