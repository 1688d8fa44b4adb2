// Legends that show and hide curves, the sortable table of many runs, and the scatter.
"use strict";
(() => {
  const { data, slots, charts, escape, finite, number } = report;
  const runs = data.runs, columns = data.columns;

  // Of few curves each figure has its own legend; what it names is a run, or a curve of one run.
  document.querySelectorAll("figure[data-figure]").forEach((figure, i) => {
    figure.querySelectorAll(".legend li").forEach((item, line) => {
      if (report.charts[i].spec.lines.length < 2) return;
      item.tabIndex = 0;
      item.classList.add("switch");
      item.title = "show or hide";
      const flip = () => {
        const run = charts[i].spec.lines[line].run;
        if (runs.length > 1) report.toggle(run, !slots.has(run));
        else {
          const hidden = charts[i].hidden;
          hidden.has(line) ? hidden.delete(line) : hidden.add(line);
          charts[i].draw();
        }
        marks();
      };
      item.addEventListener("click", flip);
      item.addEventListener("keydown", (e) => e.key === "Enter" && flip());
    });
  });

  const table = document.getElementById("overview");
  const shared = document.getElementById("shown");
  function marks() {
    charts.forEach((chart) => {
      const items = chart.box.closest("figure").querySelectorAll(".legend li");
      items.forEach((item, line) => {
        const on = runs.length > 1 ? slots.has(chart.spec.lines[line].run) : !chart.hidden.has(line);
        item.classList.toggle("off", !on);
      });
    });
    if (!shared) return;
    shared.innerHTML = [...slots].map(([run, slot]) => `<li>${report.swatch(slot)}<span>${escape(runs[run].name)}</span></li>`).join("");
    table.querySelectorAll("tbody tr").forEach((row) => {
      const run = Number(row.dataset.run);
      row.querySelector("input").checked = slots.has(run);
      row.querySelector(".mark").innerHTML = slots.has(run) ? report.swatch(slots.get(run)) : "";
    });
  }

  if (table) {
    const body = table.tBodies[0];
    for (const row of body.rows) {
      const box = document.createElement("input");
      box.type = "checkbox";
      box.title = "draw this run";
      box.addEventListener("change", () => { report.toggle(Number(row.dataset.run), box.checked); marks(); });
      row.cells[0].prepend(box);
    }
    table.querySelectorAll("thead th").forEach((head, i) => {
      const flip = () => {
        const falls = head.ariaSort === "descending" || (!head.ariaSort && i === 0);
        table.querySelectorAll("thead th").forEach((other) => (other.ariaSort = null));
        head.ariaSort = falls ? "ascending" : "descending";
        const value = (row) => (i ? columns[i - 1].values[row.dataset.run] : runs[row.dataset.run].name);
        const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b
          : String(a).localeCompare(String(b), undefined, { numeric: true }));
        const sorted = [...body.rows].sort((one, other) => {
          const [a, b] = [value(one), value(other)];
          if (a === null || b === null) return (a === null) - (b === null); // what is not known is last
          return falls ? compare(a, b) : compare(b, a);
        });
        body.append(...sorted);
      };
      head.tabIndex = 0;
      head.addEventListener("click", flip);
      head.addEventListener("keydown", (e) => e.key === "Enter" && flip());
    });
  }

  const section = document.getElementById("scatter");
  if (section) {
    section.hidden = false;
    const box = section.querySelector(".plot");
    const [xSelect, ySelect] = ["x", "y"].map((name) => section.querySelector(`[name=${name}]`));
    const option = (i) => `<option value="${i}">${escape(columns[i].title)}</option>`;
    const indices = columns.map((_, i) => i);
    const numeric = (i) => columns[i].values.some((v) => typeof v === "number");
    const settings = indices.filter((i) => columns[i].kind === "setting");
    const results = indices.filter((i) => columns[i].kind !== "setting" && numeric(i));
    const group = (label, list) => (list.length ? `<optgroup label="${label}">${list.map(option).join("")}</optgroup>` : "");
    xSelect.innerHTML = group("settings", settings) + group("results", results);
    ySelect.innerHTML = group("results", results) + group("settings", settings.filter(numeric));
    const first = settings.find((i) => numeric(i) && columns[i].title !== "seed") ?? settings[0] ?? results[0];
    xSelect.value = first;
    ySelect.value = results[0];
    const logs = { x: section.querySelector("[name=logx]"), y: section.querySelector("[name=logy]") };
    const spread = (i) => {
      const known = columns[i].values.filter(finite);
      return known.every((v) => v > 0) && Math.max(...known) >= 30 * Math.min(...known);
    };
    let points = [];
    function draw() {
      const x = columns[xSelect.value], y = columns[ySelect.value];
      const width = Math.max(box.clientWidth, 240), height = 320;
      const words = x.values.some((v) => typeof v === "string")
        ? [...new Set(x.values.filter((v) => v !== null).map(String))].sort((a, b) => a.localeCompare(b, undefined, { numeric: true })) : null;
      const place = (v) => (v === null ? null : words ? words.indexOf(String(v)) : v);
      const pairs = runs.map((run, i) => ({ run, x: place(x.values[i]), y: y.values[i], word: x.cells[i] }))
        .filter((p) => finite(p.x) && finite(p.y) && (!logs.x.checked || words || p.x > 0) && (!logs.y.checked || p.y > 0));
      const yAxis = report.makeAxis(pairs.map((p) => p.y), logs.y.checked ? "log" : "linear", height - 34, 8);
      const xAxis = words ? report.makeAxis([-0.5, words.length - 0.5], "exact", 56, width - 30)
        : report.makeAxis(pairs.map((p) => p.x), logs.x.checked ? "log" : "linear", 56, width - 30);
      const distinct = [...new Set(pairs.map((p) => p.x))].sort((a, b) => a - b);
      if (!words && distinct.length <= 8) {
        let last = -Infinity; // a value for each column of points, as long as its label has room
        xAxis.ticks = distinct.filter((v) => xAxis.place(v) - last > 44 && ((last = xAxis.place(v)), true));
      }
      const room = Math.max(6, Math.floor((width - 60) / (words?.length || 1) / 7));
      if (words) xAxis.ticks = words.map((_, i) => i).filter((_, i) => i % Math.ceil(words.length / 12) === 0);
      const xText = (v) => (!words ? number(v, x.share) : words[v].length > room ? `${words[v].slice(0, room - 1)}\u2026` : words[v]);
      points = pairs.map((p) => ({ ...p, px: xAxis.place(p.x), py: yAxis.place(p.y) }));
      box.innerHTML = `<svg role="img" aria-label="${escape(y.title)} by ${escape(x.title)}" width="${width}" height="${height}">` +
        report.frame(width, height, xAxis, yAxis, x.title, xText, (v) => number(v, y.share)) +
        points.map((p) => `<circle r="5" cx="${p.px.toFixed(1)}" cy="${p.py.toFixed(1)}" fill="var(--series-1)" ` +
          'fill-opacity=".65" stroke="var(--card)"/>').join("") + "</svg>";
      section.querySelector(".note").textContent = points.length === runs.length ? "" : `${points.length} of ${runs.length} runs have both values.`;
    }
    const choose = () => { logs.x.checked = numeric(xSelect.value) && spread(xSelect.value); draw(); };
    box.addEventListener("pointermove", (event) => {
      const at = box.getBoundingClientRect();
      const far = (p) => Math.hypot(p.px - event.clientX + at.left, p.py - event.clientY + at.top);
      const near = points.reduce((a, b) => (!a || far(b) < far(a) ? b : a), null);
      if (!near || far(near) > 40) return report.hideTip();
      const y = columns[ySelect.value];
      report.showTip(event, `<div class="near"><span>${escape(near.run.name)}</span></div><div><span>${escape(columns[xSelect.value].title)}</span>` +
        `<b>${escape(near.word)}</b></div><div><span>${escape(y.title)}</span><b>${escape(number(near.y, y.share))}</b></div>`);
    });
    box.addEventListener("pointerleave", report.hideTip);
    xSelect.addEventListener("change", choose);
    [ySelect, logs.x, logs.y].forEach((each) => each.addEventListener("change", draw));
    choose();
    new ResizeObserver(() => requestAnimationFrame(draw)).observe(box);
  }
  document.querySelectorAll(".scripted").forEach((each) => (each.hidden = false));
  marks();
})();
