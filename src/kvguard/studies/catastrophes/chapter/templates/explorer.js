"use strict";
// The trace explorer: unpacks the traces, and shows the one that is chosen.
(async () => {
  const STATES = ["NORMAL", "ALERT", "SAFE"];
  const form = document.getElementById("pick");
  const pick = form.elements;
  const plot = document.getElementById("plot");
  const tokens = document.getElementById("tokens");
  const models = JSON.parse(document.getElementById("traces").textContent);
  for (const model of models) Object.assign(model, await unpack(model));

  async function unpack({ block, n }) {
    const bytes = Uint8Array.from(atob(block), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const buffer = await new Response(stream).arrayBuffer();
    return {
      piece: new Uint16Array(buffer, 0, n),
      entropy: Array.from(new Uint16Array(buffer, 2 * n, n), (v) => v / 1000),
      top1: Array.from(new Uint8Array(buffer, 4 * n, n), (v) => v / 255),
      hazard: Array.from(new Uint8Array(buffer, 5 * n, n), (v) => v / 255),
      state: new Uint8Array(buffer, 6 * n, n),
    };
  }

  const model = () => models[pick.model.value];
  const unique = (values) => [...new Set(values)];

  // Fill a choice; what was chosen stays chosen where it still can be.
  function offer(select, options) {
    const before = select.value;
    select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
    if (options.some(([value]) => String(value) === before)) select.value = before;
  }

  function verdict({ correct, catastrophes, predicted }) {
    const judged = correct === null ? "not scored" : correct ? "right" : "wrong";
    const kinds = catastrophes.map((kind) => kind.replace("_", "-")).join(" and ");
    return `${kinds || "no catastrophe"}, ${judged}` + (predicted === null ? ", no answer" : `, answer ${predicted}`);
  }

  function chosen() {
    const { compressor, ratio, prompt } = pick;
    return model().traces.find(
      (t) => t.compressor === compressor.value && String(t.ratio) === ratio.value && String(t.prompt) === prompt.value,
    );
  }

  function refresh() {
    const { traces, prompts } = model();
    offer(pick.compressor, unique(traces.map((t) => t.compressor)).map((name) => [name, name]));
    const same = traces.filter((t) => t.compressor === pick.compressor.value);
    offer(pick.ratio, unique(same.map((t) => t.ratio)).sort((a, b) => a - b).map((r) => [r, r]));
    const here = same.filter((t) => String(t.ratio) === pick.ratio.value);
    here.sort((a, b) => b.catastrophes.length - a.catastrophes.length || a.id - b.id);
    offer(pick.prompt, here.map((t, i) => [t.prompt, `${i + 1}. ${verdict(t)} (${prompts[t.prompt].id})`]));
    show();
  }

  function show() {
    const { prompts, pieces, piece, hazard, entropy, top1, state } = model();
    const trace = chosen();
    const prompt = prompts[trace.prompt];
    document.getElementById("question").textContent = `${prompt.question}\n(answer: ${prompt.answer})`;
    document.getElementById("uncompressed").textContent = prompt.uncompressed.text;
    document.getElementById("verdict-uncompressed").textContent = verdict(prompt.uncompressed);
    const onset = trace.onset === null ? "no onset" : `onset at token ${trace.onset}` + (trace.rule && `, ${trace.rule}`);
    const safe = trace.safe === null ? "SAFE never reached" : `SAFE at token ${trace.safe}`;
    document.getElementById("verdict").textContent = `${verdict(trace)}; ${trace.n} tokens, ${onset}, ${safe}`;
    tokens.replaceChildren();
    for (let t = 0; t < trace.n; t++) {
      const at = trace.start + t;
      if (t === trace.onset) tokens.append(mark("onset", ""));
      if (t === trace.safe) tokens.append(mark("SAFE", "guard"));
      const span = document.createElement("span");
      span.textContent = pieces[piece[at]];
      span.className = STATES[state[at]];
      span.style.setProperty("--h", hazard[at].toFixed(2));
      span.dataset.t = t;
      span.title =
        `token ${t}: hazard ${hazard[at].toFixed(2)}, entropy ${entropy[at].toFixed(2)} nats, ` +
        `top-1 ${top1[at].toFixed(2)}, ${STATES[state[at]]}`;
      tokens.append(span);
    }
    draw(trace);
  }

  function mark(text, kind) {
    const element = document.createElement("b");
    element.textContent = text;
    element.className = kind;
    return element;
  }

  function draw(trace) {
    const { hazard, entropy, top1, state, point } = model();
    const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
    const end = trace.start + trace.n;
    const x = Array.from({ length: trace.n }, (_, t) => t);
    const line = (name, values, axis, style) => ({
      name, x, y: values.slice(trace.start, end), yaxis: axis, mode: "lines", line: style, hovertemplate: "%{y:.2f}",
    });
    const shapes = bands(state.slice(trace.start, end), colour);
    for (const tau of [point.tau_low, point.tau_high])
      shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, y0: tau, y1: tau, line: { dash: "dot", width: 1, color: colour("soft") } });
    const notes = [];
    for (const [at, text, name, dash] of [[trace.onset, "onset", "onset", "solid"], [trace.safe, "SAFE", "safe", "dash"]]) {
      if (at === null) continue;
      shapes.push({ type: "line", yref: "paper", x0: at, x1: at, y0: 0, y1: 1, line: { width: 2, dash, color: colour(name) } });
      const isLater = at >= Math.max(trace.onset, trace.safe);
      notes.push({
        x: at, y: 1, yref: "paper", xanchor: isLater ? "left" : "right", yanchor: "bottom", text, showarrow: false,
        font: { color: colour(name) },
      });
    }
    const axis = { gridcolor: colour("line"), zeroline: false, fixedrange: true };
    Plotly.react(
      plot,
      [
        line("hazard", hazard, "y", { color: colour("hazard"), width: 2.5 }),
        line("top-1 probability", top1, "y", { color: colour("top1"), width: 1.3, dash: "dot" }),
        line("entropy", entropy, "y2", { color: colour("entropy"), width: 1.6 }),
      ],
      {
        height: 400,
        margin: { l: 52, r: 12, t: 24, b: 78 },
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        font: { color: colour("ink"), family: "system-ui, sans-serif", size: 13 },
        hovermode: "x unified",
        hoversubplots: "axis",
        hoverlabel: { bgcolor: colour("panel"), bordercolor: colour("line") },
        dragmode: false,
        legend: { orientation: "h", x: 0, y: -0.2, yanchor: "top" },
        xaxis: { ...axis, title: { text: "generated token", standoff: 6 }, range: [-1, trace.n], anchor: "y2" },
        yaxis: { ...axis, domain: [0.48, 1], range: [-0.03, 1.03], title: { text: "probability" } },
        yaxis2: { ...axis, domain: [0, 0.4], rangemode: "tozero", title: { text: "entropy (nats)" } },
        shapes,
        annotations: notes,
      },
      { displayModeBar: false, responsive: true },
    );
  }

  // A band behind each run of tokens in ALERT or SAFE.
  function bands(states, colour) {
    const found = [];
    for (let t = 0, begin = 0; t <= states.length; t++) {
      if (t < states.length && states[t] === states[begin]) continue;
      if (states[begin] > 0)
        found.push({
          type: "rect", layer: "below", yref: "paper", x0: begin - 0.5, x1: t - 0.5, y0: 0, y1: 1,
          line: { width: 0 }, opacity: 0.14, fillcolor: colour(STATES[states[begin]].toLowerCase()),
        });
      begin = t;
    }
    return found;
  }

  function step(by) {
    const { prompt } = pick;
    prompt.selectedIndex = (prompt.selectedIndex + by + prompt.length) % prompt.length;
    show();
  }

  // Begin where there is something to see: a catastrophe that was foreseen.
  function begin() {
    refresh();
    const { traces } = model();
    const first = traces.find((t) => t.onset !== null && t.safe !== null && t.safe < t.onset);
    if (!first) return;
    for (const name of ["compressor", "ratio", "prompt"]) {
      pick[name].value = String(first[name]);
      refresh();
    }
  }

  offer(pick.model, models.map(({ title }, number) => [number, title]));
  begin();
  form.addEventListener("change", refresh);
  pick.back.addEventListener("click", () => step(-1));
  pick.next.addEventListener("click", () => step(1));
  tokens.addEventListener("pointerover", ({ target }) => {
    if (target.dataset.t) Plotly.Fx.hover(plot, { xval: Number(target.dataset.t) }, ["xy", "xy2"]);
  });
  plot.on("plotly_hover", ({ points }) => {
    for (const old of tokens.querySelectorAll(".here")) old.classList.remove("here");
    tokens.querySelector(`[data-t="${points[0].pointNumber}"]`)?.classList.add("here");
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw(chosen()));
})();
