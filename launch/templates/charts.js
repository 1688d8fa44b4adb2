// Curves of the report: redraws the page's static figures so that values can be looked at.
// In: the page's JSON (see reporting/plot_data.py). Without it the static figures stay.
"use strict";
const report = (() => {
  const data = JSON.parse(document.getElementById("report-data").textContent);
  const DASHES = ["", "6 3", "2 3", "8 3 2 3"];
  const UNITS = { step: "step", pairs: "pairs seen", epochs: "epochs", seconds: "time" };
  const state = { axis: data.axis, scale: "auto", smoothing: 15, range: null };
  const slots = new Map(data.drawn.map((run, slot) => [run, slot])); // runs shown -> colour
  const charts = [];
  const tip = document.body.appendChild(document.createElement("div"));
  tip.className = "tip";
  tip.hidden = true;

  const escape = (text) => String(text).replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
  const finite = (v) => v !== null && Number.isFinite(v);
  const stroke = (colour) => `var(--series-${(colour % 8) + 1})`;
  const style = (colour) =>
    `stroke="${stroke(colour)}" stroke-dasharray="${DASHES[Math.floor(colour / 8) % 4]}"`;
  const swatch = (colour) => `<span class="swatch" style="border-top-color:${stroke(colour)};` +
    `border-top-style:${["solid", "dashed", "dotted", "double"][Math.floor(colour / 8) % 4]}"></span>`;

  function brief(v) {
    for (const [limit, unit] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]])
      if (Math.abs(v) >= limit) return `${+(v / limit).toPrecision(4)}${unit}`;
    if (v && Math.abs(v) < 1e-2) return v.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
    return `${+v.toPrecision(4)}`;
  }
  function time(v) {
    if (v < 120) return `${+v.toPrecision(3)} s`;
    if (v < 7200) return `${+(v / 60).toPrecision(3)} min`;
    return v < 172800 ? `${+(v / 3600).toPrecision(3)} h` : `${+(v / 86400).toPrecision(3)} d`;
  }
  const number = (v, share) => (!finite(v) ? "-" : share ? `${+(100 * v).toPrecision(3)}%` : brief(v));
  const alongX = (v) => (state.axis === "seconds" ? time(v) : brief(v));

  // Piecewise linear, flat beyond both ends; `from` rises.
  function interpolate(x, from, to) {
    let high = from.findIndex((v) => v >= x);
    if (high < 0) return to[to.length - 1];
    if (high === 0) return to[0];
    const part = (x - from[high - 1]) / (from[high] - from[high - 1] || 1);
    return to[high - 1] + part * (to[high] - to[high - 1]);
  }
  function smooth(values, width) {
    return values.map((own, i) => {
      if (!finite(own)) return null;
      const reach = Math.min(width >> 1, i, values.length - 1 - i);
      const near = values.slice(i - reach, i + reach + 1).filter(finite);
      return near.reduce((a, b) => a + b, 0) / near.length;
    });
  }
  function ticks(low, high, count, steps = [1, 2, 2.5, 5, 10]) {
    const size = (high - low) / count || 1;
    const power = 10 ** Math.floor(Math.log10(size));
    const step = power * steps.find((s) => s * power >= size * 0.999);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(i * step);
    return found;
  }
  // People count time in sixties.
  function timeTicks(low, high, count) {
    const size = (high - low) / count;
    const steps = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 21600, 43200, 86400];
    const step = steps.find((s) => s >= size);
    if (size < 1 || !step) return ticks(low, high, count);
    return ticks(low, high, (high - low) / step, [1, 1.2, 1.8, 2, 2.16, 3, 3.6, 4.32, 5, 6, 7.2, 8.64, 10]);
  }
  function logTicks(low, high) {
    if (high / low < 10) return ticks(low, high, 4).filter((v) => v >= low);
    const parts = high / low < 100 ? [1, 2, 5] : high / low < 1e4 ? [1, 3] : [1];
    const found = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++)
      found.push(...parts.map((p) => p * 10 ** e).filter((v) => v >= low && v <= high));
    return found;
  }

  // One axis: values to pixels, and its ticks. `shape`: linear, log or share.
  function makeAxis(values, shape, from, to) {
    let low = Math.min(...values), high = Math.max(...values);
    if (!values.length) [low, high] = [0, 1];
    if (shape === "log" && low > 0) {
      if (high < low * 1.5) [low, high] = [low / 2, high * 2];
      const [a, b] = [Math.log(low / 1.06), Math.log(high * 1.06)];
      return { place: (v) => from + ((Math.log(v) - a) / (b - a)) * (to - from), shape,
               invert: (p) => Math.exp(a + ((p - from) / (to - from)) * (b - a)), ticks: logTicks(low, high) };
    }
    if (shape === "share") {
      high = high <= 1 ? Math.min(Math.max(high * 1.08, 0.02), 1) : high * 1.08;
      low = Math.min(low, 0);
    } else if (shape !== "exact") {
      const room = (high - low) * 0.05;
      [low, high] = [low - room, high + room];
      // A flat curve is not magnified until its rounding errors look like events.
      if (high - low <= 1e-3 * Math.max(Math.abs(low), Math.abs(high), 1e-9))
        [low, high] = [Math.min(0, 2 * low), Math.max(2 * high, 1e-6)];
    }
    if (high === low) high = low + 1;
    return { place: (v) => from + ((v - low) / (high - low)) * (to - from), shape,
             invert: (p) => low + ((p - from) / (to - from)) * (high - low), ticks: ticks(low, high, 5), low, high };
  }
  function frame(width, height, x, y, xLabel, xText, yText) {
    const left = 48, bottom = height - 34;
    const rows = y.ticks.map((v) => `<line x1="${left}" x2="${width - 8}" y1="${y.place(v).toFixed(1)}" ` +
      `y2="${y.place(v).toFixed(1)}" stroke="var(--grid)"/><text x="${left - 7}" y="${(y.place(v) + 4).toFixed(1)}" ` +
      `text-anchor="end">${escape(yText(v))}</text>`);
    const columns = x.ticks.map((v) => `<text x="${x.place(v).toFixed(1)}" y="${bottom + 16}" ` +
      `text-anchor="middle">${escape(xText(v))}</text>`);
    return `<g class="axis">${rows.join("")}<line x1="${left}" x2="${width - 8}" y1="${bottom}" y2="${bottom}" ` +
      `stroke="var(--muted)"/>${columns.join("")}<text x="${(left + width) / 2}" y="${height - 3}" ` +
      `text-anchor="middle">${escape(xLabel)}</text></g>`;
  }

  class Chart {
    constructor(figure) {
      this.spec = data.figures[figure.dataset.figure];
      this.box = figure.querySelector(".plot");
      this.title = figure.querySelector("h3").textContent;
      this.hidden = new Set();
      this.box.addEventListener("pointermove", (e) => this.hover(e));
      this.box.addEventListener("pointerleave", () => this.leave());
      this.box.addEventListener("pointerdown", (e) => (this.from = e.clientX));
      this.box.addEventListener("pointerup", (e) => this.zoom(e));
      this.box.addEventListener("dblclick", () => set({ range: null }));
      const seen = new IntersectionObserver((entries) => {
        if (!entries.some((entry) => entry.isIntersecting)) return;
        seen.disconnect();
        new ResizeObserver(() => requestAnimationFrame(() => this.draw())).observe(this.box);
      }, { rootMargin: "400px" });
      seen.observe(this.box);
      this.ready = false;
    }
    // What is drawn: lines with pixels later, colours by the runs that are shown.
    lines() {
      const many = data.runs.length > 1;
      return this.spec.lines
        .filter((line, i) => (many ? slots.has(line.run) : !this.hidden.has(i)))
        .map((line) => ({ ...line, colour: many ? slots.get(line.run) : line.colour, x: this.x(line) }));
    }
    x(line) {
      line.known ||= {};
      const run = data.runs[line.run], steps = data.steps[line.steps];
      const to = run[state.axis];
      return (line.known[state.axis] ||= state.axis === "step" || !to ? steps
        : steps.map((s) => interpolate(s, run.step, to)));
    }
    draw() {
      this.ready = true;
      const width = Math.max(this.box.clientWidth, 240), height = 226;
      const { grain, scale } = this.spec;
      const few = this.lines().length <= 8;
      const inside = (x) => !state.range || (x >= state.range[0] && x <= state.range[1]);
      this.shown = this.lines().map((line) => {
        const noisy = grain === "noisy" && state.smoothing > 1 && line.value.length >= 4 * 15;
        const strong = noisy ? smooth(line.value, state.smoothing) : line.value;
        const keep = line.x.map(inside);
        const cut = (values) => values.filter((_, i) => keep[i]);
        return { ...line, x: cut(line.x), value: cut(line.value), strong: cut(strong), faint: noisy && few };
      });
      const values = this.shown.flatMap((l) => (l.faint ? l.value : l.strong)).filter(finite);
      const positive = values.filter((v) => v > 0);
      const wide = positive.length === values.length && 50 * Math.min(...values) < Math.max(...values);
      const log = state.scale === "log" ? positive.length > 0 : state.scale === "auto" && scale === "spiky" && wide;
      this.y = makeAxis(log ? positive : values, log ? "log" : scale === "share" ? "share" : "linear", height - 34, 8);
      const ends = state.range || [0, Math.max(...this.shown.flatMap((l) => l.x), 0)];
      this.xAxis = makeAxis(ends, "exact", 48, width - 14);
      this.xAxis.ticks = state.axis === "seconds" ? timeTicks(...ends, width < 420 ? 3 : 5) : ticks(...ends, width < 420 ? 3 : 5);
      const share = scale === "share";
      const paths = this.shown.map((l) => (l.faint ? this.path(l, l.value, 'stroke-width="1" opacity=".3"') : "") +
        this.path(l, l.strong, 'stroke-width="1.9"') + this.dots(l)).join("");
      this.box.innerHTML = `<svg role="img" aria-label="${escape(this.title)}" width="${width}" height="${height}">` +
        frame(width, height, this.xAxis, this.y, UNITS[state.axis], alongX, (v) => number(v, share)) + paths +
        `<line class="cursor" y1="8" y2="${height - 34}" visibility="hidden"/><g class="marks"></g></svg>`;
    }
    at(value) {
      return finite(value) && (this.y.shape !== "log" || value > 0) ? this.y.place(value) : null;
    }
    path(line, values, how) {
      let text = "", pen = false;
      values.forEach((value, i) => {
        const y = this.at(value);
        if (y !== null) text += `${pen ? "L" : "M"}${this.xAxis.place(line.x[i]).toFixed(1)} ${y.toFixed(1)}`;
        pen = y !== null;
      });
      return `<path d="${text}" fill="none" ${style(line.colour)} ${how}/>`;
    }
    dots(line) {
      const marked = this.spec.grain === "sparse" ? line.x.length <= 30 : line.x.length <= 3;
      return !marked ? "" : line.strong.map((value, i) => (this.at(value) === null ? "" :
        `<circle r="3" cx="${this.xAxis.place(line.x[i]).toFixed(1)}" cy="${this.at(value).toFixed(1)}" fill="${stroke(line.colour)}"/>`)).join("");
    }
    hover(event) {
      if (!this.shown) return;
      const place = this.box.getBoundingClientRect();
      const [px, py] = [event.clientX - place.left, event.clientY - place.top];
      const x = this.xAxis.invert(px);
      const points = this.shown.flatMap((line) => {
        let best = -1;
        line.x.forEach((v, i) => {
          if (this.at(line.value[i]) !== null && (best < 0 || Math.abs(v - x) < Math.abs(line.x[best] - x))) best = i;
        });
        return best < 0 ? [] : [{ line, x: line.x[best], value: line.value[best], y: this.at(line.value[best]) }];
      });
      if (!points.length) return this.leave();
      const nearest = points.reduce((a, b) => (Math.abs(b.y - py) < Math.abs(a.y - py) ? b : a));
      const cursor = this.box.querySelector(".cursor");
      for (const side of ["x1", "x2"]) cursor.setAttribute(side, this.xAxis.place(nearest.x));
      cursor.setAttribute("visibility", "visible");
      this.box.querySelector(".marks").innerHTML = points.map((p) => `<circle r="${p === nearest ? 4.5 : 3}" ` +
        `cx="${this.xAxis.place(p.x)}" cy="${p.y}" fill="${stroke(p.line.colour)}"/>`).join("");
      const share = this.spec.scale === "share";
      points.sort((a, b) => b.value - a.value);
      const from = Math.max(0, Math.min(points.indexOf(nearest) - 5, points.length - 12));
      const rows = points.slice(from, from + 12).map((p) => `<div class="${p === nearest ? "near" : ""}">` +
        `${swatch(p.line.colour)}<span>${escape(p.line.label)}</span><b>${escape(number(p.value, share))}</b></div>`);
      showTip(event, `<div class="muted">${UNITS[state.axis]} ${escape(alongX(nearest.x))}</div>${rows.join("")}`);
    }
    leave() {
      tip.hidden = true;
      this.from = undefined;
      this.box.querySelector(".cursor")?.setAttribute("visibility", "hidden");
      const marks = this.box.querySelector(".marks");
      if (marks) marks.innerHTML = "";
    }
    zoom(event) {
      if (this.from === undefined || Math.abs(event.clientX - this.from) < 10) return (this.from = undefined);
      const left = this.box.getBoundingClientRect().left;
      const ends = [this.from, event.clientX].map((p) => this.xAxis.invert(p - left)).sort((a, b) => a - b);
      this.from = undefined;
      set({ range: ends });
    }
  }

  function showTip(event, html) {
    tip.innerHTML = html;
    tip.hidden = false;
    const left = event.clientX + 16 + tip.offsetWidth > innerWidth ? event.clientX - 16 - tip.offsetWidth : event.clientX + 16;
    tip.style.left = `${Math.max(4, left)}px`;
    tip.style.top = `${Math.max(4, Math.min(event.clientY - 12, innerHeight - tip.offsetHeight - 8))}px`;
  }
  function hideTip() { tip.hidden = true; }
  function redraw() { charts.forEach((chart) => chart.ready && chart.draw()); }
  function set(changes) {
    Object.assign(state, changes);
    if ("axis" in changes) state.range = null;
    document.getElementById("zoom").hidden = !state.range;
    redraw();
  }
  // Shows or hides a run in all figures; its colour is the first that is free.
  function toggle(run, on) {
    if (!on) slots.delete(run);
    else if (!slots.has(run)) {
      const taken = new Set(slots.values());
      let slot = 0;
      while (taken.has(slot)) slot++;
      slots.set(run, slot);
    }
    redraw();
  }

  document.querySelectorAll("figure[data-figure]").forEach((figure) => charts.push(new Chart(figure)));
  const controls = document.getElementById("controls");
  controls.hidden = !charts.length;
  for (const [name, convert] of [["axis", String], ["scale", String], ["smoothing", Number]]) {
    const select = controls.querySelector(`[name=${name}]`);
    select.addEventListener("change", () => set({ [name]: convert(select.value) }));
  }
  document.getElementById("zoom").addEventListener("click", () => set({ range: null }));
  return { data, slots, charts, toggle, redraw, escape, finite, number, makeAxis, frame, showTip, hideTip, stroke, swatch };
})();
