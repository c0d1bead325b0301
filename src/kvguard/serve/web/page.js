"use strict";
// Asks the server twice, with and without compression, and shows what it tells of each token as it comes.
// What a model writes, and what the server says, reaches the page as textContent only.
(() => {
  const byId = (id) => document.getElementById(id);
  const how = byId("how").elements;
  const percent = (share) => `${Math.round(share * 100)} %`;
  const OFF = "off";
  const ACTIONS = {
    none: "none: only watch",
    restore: "restore the full cache",
    rollback: "rollback: restore, take tokens back",
    restart: "restart the answer",
    [OFF]: "off: not watched",
  };
  const DONE = { restore: "restored", restart: "started again", resume: "compressed again" };
  const SAMPLES = [
    ["A sum that needs its memory", "Solve the last problem step by step. End with #### and the answer.\n\nQ: Max fills a crate with 18 planes, 7 rulers and 13 buttons. How many things are in the crate?\nA: planes: 18 things. rulers: 18 + 7 = 25 things. buttons: 25 + 13 = 38 things.\n#### 38\n\nQ: A crate holds 18 planes. Emil and Yara each add 12 planes. How many planes are there now?\nA: Emil: 18 + 12 = 30 planes. Yara: 30 + 12 = 42 planes.\n#### 42\n\nQ: A barrel holds 40 socks. Wei, Hana and Omar each add 9 socks. How many socks are there now?\nA: Wei: 40 + 9 = 49 socks. Hana: 49 + 9 = 58 socks. Omar: 58 + 9 = 67 socks.\n#### 67\n\nQ: A bag holds 28 balls. Carl, Vera, Dan, Uma and Faye each add 6 balls. How many balls are there now?"],
    ["A longer story", "Solve the last problem step by step. End with #### and the answer.\n\nQ: Yusuf has 27 badges. Yusuf donates 22 badges. Yusuf wins 11 more badges. How many badges does Yusuf have now?\nA: Yusuf donates 22: 27 - 22 = 5 badges. Yusuf wins 11: 5 + 11 = 16 badges.\n#### 16\n\nQ: Flora has 8 boxes at the fair. Flora wins 10 boxes. Then the boxes of Flora double. Flora gives 11 boxes to Ida. How many boxes does Flora have in the end?\nA: Flora wins 10: 8 + 10 = 18 boxes. Flora doubles: 18 * 2 = 36 boxes. Flora gives 11: 36 - 11 = 25 boxes.\n#### 25\n\nQ: Jane has 38 badges in town. Jane discards 28 badges. Then the badges of Jane double. How many badges does Jane have now?\nA: Jane discards 28: 38 - 28 = 10 badges. Jane doubles: 10 * 2 = 20 badges.\n#### 20\n\nQ: Dan has 22 melons. Dan gives half of the melons to Tina. Dan donates 8 melons. Dan wins 8 melons. Dan gives 7 melons to Tina. Vera has 19 more melons than Dan. How many melons do they have together?"],
    ["A note to look something up in", "Read the note, then answer in one sentence.\n\nNote: The spring market opens on the second Saturday of April at the old tram depot. Bakers set up in hall A from six in the morning, florists in hall B from seven. The ferry from the north quay leaves every forty minutes, the last one back at 22:10. Dogs are welcome in hall B only. Stalls are paid for at the gatehouse, in cash; the gatehouse closes at noon. If it rains, the music moves from the yard to the engine room, where there is space for eighty people.\n\nQuestion: Where do stalls have to be paid for, how, and until when?"],
  ];
  let key = ""; // in memory only
  let card = null; // what the server says of its model
  let underway = null; // aborts the answers that are being written
  let said = { guarded: [], full: [] }; // the conversation, as each side has it

  async function call(path, body, signal) {
    const headers = body ? { "Content-Type": "application/json" } : {};
    if (key) headers.Authorization = `Bearer ${key}`;
    const answer = await fetch(path, { method: body ? "POST" : "GET", body: body && JSON.stringify(body), headers, signal });
    if (answer.ok) return answer;
    const message = await answer.json().then((told) => told.error.message, () => `the server answered ${answer.status}`);
    throw Object.assign(new Error(message), { status: answer.status });
  }

  async function* events(answer) {
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let text = ""; ; ) {
      const { done, value } = await reader.read();
      if (done) throw new Error("the connection ended before the answer did");
      const parts = (text + value).split("\n\n");
      text = parts.pop();
      for (const part of parts) {
        const data = part.slice("data: ".length);
        if (data === "[DONE]") return;
        const event = JSON.parse(data);
        if (event.error) throw new Error(event.error.message);
        yield event;
      }
    }
  }

  // ---- the door, and what the server allows

  async function enter() {
    byId("lost").hidden = true;
    try {
      card = (await (await call("v1/models")).json()).data[0];
    } catch (error) {
      if (error.status === 401) return askKey(key ? "The server does not take this key." : "");
      byId("lost").hidden = false;
      byId("lost").querySelector("p").textContent = `The server cannot be reached: ${error.message}`;
      return;
    }
    byId("door").hidden = true;
    byId("room").hidden = byId("settings").hidden = false;
    document.title = `${card.id} - kvguard`;
    byId("model").textContent = card.id;
    offer(card.kvguard);
    byId("prompt").focus();
  }

  function askKey(refused) {
    byId("room").hidden = byId("settings").hidden = true;
    byId("door").hidden = false;
    byId("refused").textContent = refused;
    byId("key").value = "";
    byId("key").focus();
  }

  function offer({ allow_kv, compressor, ratio, compressors, guard, action, actions, point, points, max_tokens }) {
    const fill = (select, values, names, chosen) => {
      select.replaceChildren(...values.map((value) => new Option(names[value] || value, value)));
      select.value = chosen;
    };
    fill(how.compressor, compressors, { none: "none: uncompressed" }, compressor);
    how.ratio.step = Number.isInteger(ratio * 40) ? 0.025 : 0.001;
    how.ratio.value = ratio;
    const guards = allow_kv && guard ? [...actions, OFF] : [guard ? action : OFF];
    fill(how.action, guards, guard ? ACTIONS : { off: "none: started without --guard" }, guard ? action : OFF);
    fill(how.point, guard ? Object.keys(points) : [OFF], { off: "none" }, guard ? point : OFF);
    how.tokens.value = max_tokens;
    how.tokens.max = card.max_model_len;
    for (const name of ["compressor", "ratio", "action", "beside"]) how[name].disabled = !allow_kv;
    how.action.disabled ||= !guard;
    how.beside.checked = allow_kv;
    byId("fixed").hidden = allow_kv;
    byId("settings").open = matchMedia("(min-width: 62rem)").matches;
    tellSettings();
  }

  function tellSettings() {
    const compressed = how.compressor.value !== "none";
    how.point.disabled = !card.kvguard.allow_kv || how.action.value === OFF;
    how.ratio.disabled = !card.kvguard.allow_kv || !compressed;
    how.share.value = compressed ? percent(how.ratio.value) : "-";
    how.heat.value = Number(how.temperature.value).toFixed(1);
    byId("short").textContent = byId("settings").open ? "" : [...title(), `${how.tokens.value} tokens`].join(", ");
  }

  // What the compressed side is: its cache, and its guard.
  function title() {
    const { compressor, ratio, action } = how;
    const cache = compressor.value === "none" ? "Uncompressed" : `${compressor.value}, ${percent(ratio.value)} removed`;
    return [cache, { none: "only watched", off: "not watched" }[action.value] || `guard: ${action.value}`];
  }

  // ---- one question, two answers

  function requests(prompt) {
    const seed = crypto.getRandomValues(new Uint32Array(1))[0];
    const options = { kvguard: true, continuous_usage_stats: true };
    const shared = { model: card.id, stream: true, stream_options: options, max_tokens: Number(how.tokens.value) };
    Object.assign(shared, { temperature: Number(how.temperature.value), seed });
    const body = (side, kv) => {
      const messages = [...said[side], { role: "user", content: prompt }];
      return { ...shared, ...(card.kvguard.chat ? { messages } : { prompt }), ...(kv && { kv }) };
    };
    if (!card.kvguard.allow_kv) return [["guarded", title(), body("guarded")]];
    const compressor = how.compressor.value;
    const kv = { compressor, ratio: compressor === "none" ? 0 : Number(how.ratio.value) };
    const point = how.point.value === card.kvguard.point ? {} : { point: how.point.value };
    const watch = (action) => (action === OFF ? { guard: false } : { action, ...point });
    if (card.kvguard.guard) Object.assign(kv, watch(how.action.value));
    const asked = [["guarded", title(), body("guarded", kv)]];
    const plain = { compressor: "none", ...(card.kvguard.guard && watch("none")) };
    const watched = card.kvguard.guard ? "only watched" : "not watched";
    if (how.beside.checked) asked.push(["full", ["Uncompressed", watched], body("full", plain)]);
    return asked;
  }

  async function ask(prompt) {
    underway = new AbortController();
    busy(true);
    byId("empty").hidden = true;
    const turn = byId("turn").content.cloneNode(true).firstElementChild;
    turn.querySelector(".question").textContent = prompt;
    byId("talk").append(turn);
    const asked = requests(prompt).map(([side, name, body]) => {
      const column = new Column(name, card.kvguard.points[how.point.value], card.kvguard.bytes_per_token);
      turn.querySelector(".pair").append(column.root);
      return answer(side, column, body, prompt);
    });
    turn.scrollIntoView({ block: "start" });
    turn.querySelector(".question").scrollTop = 1e6; // the question itself stands at the end of a long prompt
    byId("status").textContent = "Answers are being written.";
    await Promise.all(asked);
    underway = null;
    busy(false);
    byId("status").textContent = "The answers are done.";
  }

  async function answer(side, column, body, prompt) {
    let text = "";
    try {
      const path = card.kvguard.chat ? "v1/chat/completions" : "v1/completions";
      for await (const chunk of events(await call(path, body, underway.signal))) {
        const [choice] = chunk.choices;
        const piece = (card.kvguard.chat ? choice.delta.content : choice.text) || "";
        text += piece;
        if (choice.finish_reason) column.finish(choice.finish_reason, choice.kvguard, chunk.usage);
        else if (choice.kvguard) column.add(piece, choice.kvguard, chunk.usage);
        else if (piece) column.write(piece);
      }
    } catch (error) {
      column.fail(error.name === "AbortError" ? "Stopped." : error.message);
      if (error.status === 401) askKey("The server does not take this key any more.");
    }
    if (text) said[side].push({ role: "user", content: prompt }, { role: "assistant", content: text });
  }

  function busy(on) {
    byId("send").hidden = byId("fresh").disabled = on;
    byId("stop").hidden = !on;
  }

  // ---- an answer as it is written

  class Column {
    constructor([name, sort], point, bytes) {
      this.root = byId("column").content.cloneNode(true).firstElementChild;
      this.part = (selector) => this.root.querySelector(selector);
      this.tokens = []; // what was told of each, with full: the entries of a full cache
      this.spans = [];
      this.marks = []; // [token, kind]
      this.bytes = bytes;
      this.begun = performance.now();
      this.part("h3").textContent = name;
      this.part(".sort").textContent = sort;
      this.part(".badge").textContent = "waiting";
      this.text = this.part(".text");
      this.text.classList.add("live");
      this.text.setAttribute("aria-label", `${name}: its tokens; walk them with the arrow keys`);
      this.taus = point ? [point.tau_low, point.tau_high] : [];
      this.text.addEventListener("pointerover", ({ target }) => this.point(this.spans.indexOf(target)));
      this.text.addEventListener("click", ({ target }) => this.point(this.spans.indexOf(target)));
      this.text.addEventListener("keydown", (press) => this.walk(press));
    }

    write(piece, seen = {}) {
      const span = document.createElement("span");
      span.textContent = piece;
      if (seen.state) span.className = seen.state;
      if (seen.hazard) span.style.setProperty("--h", seen.hazard);
      this.text.append(span);
      return span;
    }

    add(piece, seen, usage) {
      const t = this.tokens.length;
      this.first ??= performance.now();
      for (const event of seen.events || []) if (event.kept <= event.t) this.mark(event, t);
      this.spans.push(this.write(piece, seen));
      this.tokens.push({ ...seen, full: usage.prompt_tokens + t });
      const going = this.alarmed; // an alarm that lasts is marked where it begins
      this.alarmed = (seen.events || []).some(({ what, kept, t }) => what === "alarm" && kept > t);
      for (const event of seen.events || []) {
        if (event.kept > event.t && !(going && event.what === "alarm")) this.mark(event, t);
      }
      this.due ??= requestAnimationFrame(() => this.draw());
    }

    mark({ what, t, kept }, at) {
      const chip = (text, kind) => {
        const element = document.createElement("b");
        element.className = `mark ${kind}`;
        element.textContent = text;
        this.text.append(element);
      };
      const back = t + 1 - kept;
      if (what !== "resume") chip(back > 0 && what !== "alarm" ? `alarm at token ${t}` : "alarm", "");
      if (what !== "alarm") chip(DONE[what] || `${back} ${back === 1 ? "token" : "tokens"} taken back`, "done");
      this.marks.push([at, what]);
    }

    finish(reason, told, usage) {
      const tiles = this.part(".tiles");
      const seconds = (performance.now() - (this.first ?? this.begun)) / 1000;
      const tile = (name, value, kind = "") => {
        const box = document.createElement("div");
        box.className = kind;
        for (const [tag, text] of [["dt", name], ["dd", value]]) {
          box.append(Object.assign(document.createElement(tag), { textContent: text }));
        }
        tiles.append(box);
      };
      const { prompt, kept, peak } = told.kv_tokens;
      tile("KV saved", percent(told.saved), "strong");
      tile("prompt kept", `${Math.round(kept)} of ${prompt}`);
      tile("peak held", Math.round(peak));
      if (told.alarms !== null) tile("alarms", told.alarms);
      if (told.restores) tile("restores", told.restores);
      if (told.rewinds) tile("rewinds", told.rewinds);
      if (told.rewinds_withheld) tile("rewinds withheld", told.rewinds_withheld);
      tile(reason === "length" ? "tokens (most)" : "tokens", usage.completion_tokens);
      if (this.first) tile("first token", `${((this.first - this.begun) / 1000).toFixed(2)} s`);
      if (this.tokens.length > 1) tile("tokens/s", ((this.tokens.length - 1) / seconds).toFixed(0));
      tiles.hidden = false;
      this.end();
    }

    fail(message) {
      this.part(".error").textContent = message;
      this.part(".error").hidden = false;
      this.end();
    }

    end() {
      this.text.classList.remove("live");
      if (!this.tokens.length) this.part(".badge").textContent = "no tokens";
      this.draw();
    }

    draw() {
      this.due = null;
      const last = this.tokens.at(-1);
      if (!last) return;
      const badge = this.part(".badge");
      badge.textContent = last.state ? last.state.toUpperCase() : "not watched";
      badge.className = `badge ${last.state || ""}`;
      const share = Math.min(1, last.kv_tokens / last.full);
      this.part(".bar").style.setProperty("--part", share);
      this.part(".bar").setAttribute("aria-valuenow", Math.round(share * 100));
      const unit = last.full * this.bytes < 2 ** 30 ? [2 ** 20, "MiB"] : [2 ** 30, "GiB"];
      const size = (entries) => ((entries * this.bytes) / unit[0]).toFixed(2);
      const entries = `${Math.round(last.kv_tokens)} of ${last.full} entries`;
      this.part(".held").textContent = `${entries}, ${size(last.kv_tokens)} of ${size(last.full)} ${unit[1]}`;
      this.chart();
    }

    chart() {
      const width = Math.max(64, this.tokens.length);
      const [low, high] = this.part(".chart").querySelectorAll(".tau");
      this.part(".chart").setAttribute("viewBox", `0 0 ${width} 100`);
      let line = "", pen = "M";
      let area = `M0 100`;
      this.tokens.forEach(({ hazard, kv_tokens, full }, t) => {
        const held = 100 - 100 * Math.min(1, kv_tokens / full);
        area += `L${t} ${held.toFixed(1)}L${t + 1} ${held.toFixed(1)}`;
        if (hazard !== null) line += `${pen}${t + 0.5} ${(100 - 100 * hazard).toFixed(1)}`;
        pen = hazard === null ? "M" : "L";
      });
      this.part(".chart .kv").setAttribute("d", `${area}L${this.tokens.length} 100Z`);
      this.part(".chart .hazard").setAttribute("d", line);
      this.taus.forEach((tau, i) => place([low, high][i], 0, width, 100 - 100 * tau, 100 - 100 * tau));
      const group = this.part(".chart g");
      while (group.childElementCount < this.marks.length) {
        const [at, what] = this.marks[group.childElementCount];
        const stroke = document.createElementNS("http://www.w3.org/2000/svg", "line");
        stroke.setAttribute("class", what);
        place(stroke, at + 0.5, at + 0.5, 0, 100);
        group.append(stroke);
      }
    }

    walk(press) {
      const step = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[press.key];
      if (step === undefined || !this.spans.length) return;
      press.preventDefault();
      this.point(Math.max(0, Math.min(this.spans.length - 1, (this.here ?? -1) + step)));
    }

    point(t) {
      if (t < 0) return;
      this.spans[this.here]?.classList.remove("here");
      this.here = t;
      this.spans[t].classList.add("here");
      const { hazard, state, kv_tokens, full } = this.tokens[t];
      const risk = hazard === null ? "hazard unknown" : `hazard ${hazard.toFixed(2)}`;
      const entries = `${Math.round(kv_tokens)} of ${full} entries`;
      this.part(".detail").textContent = `token ${t}: ${risk}, ${(state || "not watched").toUpperCase()}, ${entries}`;
      place(this.part(".cursor"), t + 0.5, t + 0.5, 0, 100);
    }
  }

  function place(line, x1, x2, y1, y2) {
    for (const [name, value] of Object.entries({ x1, x2, y1, y2 })) line.setAttribute(name, value);
  }

  // ---- the controls

  byId("door").addEventListener("submit", (event) => {
    event.preventDefault();
    key = byId("key").value.trim();
    if (/^[\x21-\x7e]+$/.test(key)) enter();
    else askKey("A key has letters, digits and signs, and no spaces.");
  });
  byId("lost").querySelector("button").addEventListener("click", enter);
  byId("how").addEventListener("input", tellSettings);
  byId("how").addEventListener("submit", (event) => event.preventDefault());
  byId("settings").addEventListener("toggle", () => card && tellSettings());
  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    const prompt = byId("prompt").value.trim();
    if (!prompt || underway || !byId("how").reportValidity()) return;
    byId("prompt").value = "";
    ask(prompt);
  });
  byId("prompt").addEventListener("keydown", (press) => {
    if (press.key !== "Enter" || press.shiftKey || press.isComposing) return;
    press.preventDefault();
    byId("ask").requestSubmit();
  });
  document.addEventListener("keydown", ({ key }) => key === "Escape" && underway?.abort());
  byId("stop").addEventListener("click", () => underway?.abort());
  byId("fresh").addEventListener("click", () => {
    said = { guarded: [], full: [] };
    byId("talk").replaceChildren();
    byId("empty").hidden = false;
    byId("prompt").focus();
  });
  for (const [name, prompt] of SAMPLES) {
    const button = Object.assign(document.createElement("button"), { type: "button" });
    const question = prompt.slice(prompt.lastIndexOf("Q") === -1 ? 0 : prompt.lastIndexOf("\n\n") + 2);
    button.append(Object.assign(document.createElement("b"), { textContent: name }));
    button.append(Object.assign(document.createElement("span"), { textContent: question }));
    button.addEventListener("click", () => !underway && ask(prompt));
    byId("samples").append(button);
  }
  if (document.body.dataset.locked === "yes") askKey("");
  else enter();
})();
