"use strict";
(() => {
  const element = (id) => document.getElementById(id);
  const keys = {
    a: ["follows", "left"], s: ["follows", "tie"], d: ["follows", "right"],
    j: ["real", "left"], k: ["real", "tie"], l: ["real", "right"],
  };
  let reviewer = new URLSearchParams(location.search).get("reviewer") || "";
  let pair = null;
  let answer = { follows: null, real: null, boxes: [] };
  let busy = false;

  const ask = async (path, body) => {
    const options = body === undefined ? {} :
      { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
    const reply = await fetch(`${path}?reviewer=${encodeURIComponent(reviewer)}`, options);
    const value = await reply.json();
    if (!reply.ok) throw new Error(typeof value.detail === "string" ? value.detail : "the answer was refused");
    return value;
  };
  const guarded = async (work) => {
    if (busy) return;
    busy = true;
    try {
      await work();
      element("error").hidden = true;
    } catch (error) {
      element("error").textContent = error instanceof TypeError
        ? "The review does not answer. Start l2p review again and reload: what you judged is kept." : error.message;
      element("error").hidden = false;
    } finally {
      busy = false;
    }
  };

  const place = (mark, box) => {
    mark.style.cssText =
      `left:${100 * box.x}%;top:${100 * box.y}%;width:${100 * box.w}%;height:${100 * box.h}%`;
  };
  const draw = () => {
    for (const question of ["follows", "real"])
      document.querySelectorAll(`[data-question="${question}"] button`).forEach((button) =>
        button.setAttribute("aria-pressed", String(button.dataset.choice === answer[question])));
    document.querySelectorAll(".shown i").forEach((mark) => mark.remove());
    for (const box of answer.boxes) {
      const mark = document.createElement("i");
      place(mark, box);
      document.querySelector(`.shown[data-side="${box.side}"]`).append(mark);
    }
    element("next").disabled = !(answer.follows && answer.real);
    element("clear").disabled = !answer.boxes.length;
  };
  const show = (state) => {
    pair = state.pair;
    answer = state.before || { follows: null, real: null, boxes: [] };
    element("enter").hidden = true;
    element("ask").hidden = !pair;
    element("done").hidden = Boolean(pair);
    element("undo").disabled = !state.done;
    element("undo-last").disabled = !state.done;
    if (!pair) return;
    element("prompt").textContent = pair.prompt;
    element("progress").max = state.total;
    element("progress").value = state.done;
    element("count").textContent = `${state.done} of ${state.total} judged.`;
    for (const side of ["left", "right"])
      element(side).src =
        `/api/picture?reviewer=${encodeURIComponent(reviewer)}&pair=${encodeURIComponent(pair.id)}&side=${side}`;
    draw();
  };

  const start = () => guarded(async () => {
    const state = await ask("/api/state");
    history.replaceState(null, "", `?reviewer=${encodeURIComponent(reviewer)}`);
    show(state);
  });
  const choose = (question, choice) => {
    answer[question] = choice;
    draw();
  };
  const next = () => {
    if (pair && answer.follows && answer.real)
      guarded(async () => show(await ask("/api/answer", { pair: pair.id, ...answer })));
  };
  const undo = () => guarded(async () => show(await ask("/api/undo", {})));
  const clear = () => {
    answer.boxes.pop();
    draw();
  };

  for (const side of ["left", "right"])
    element(side).addEventListener("error", () => {
      element("error").textContent = "A picture cannot be read. Start l2p review again: what you judged is kept.";
      element("error").hidden = false;
    });
  element("enter").addEventListener("submit", (event) => {
    event.preventDefault();
    reviewer = element("name").value.trim();
    if (reviewer) start();
  });
  document.querySelectorAll("[data-question]").forEach((row) =>
    row.querySelectorAll("button").forEach((button) =>
      button.addEventListener("click", () => choose(row.dataset.question, button.dataset.choice))));
  element("next").addEventListener("click", next);
  element("undo").addEventListener("click", undo);
  element("undo-last").addEventListener("click", undo);
  element("clear").addEventListener("click", clear);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "INPUT") return;
    const key = event.key.toLowerCase();
    if (key === "u") undo();
    else if (!pair) return;
    else if (keys[key]) choose(...keys[key]);
    else if (key === "x") clear();
    else if (key === "enter") next();
    else return;
    event.preventDefault();
  });

  document.querySelectorAll(".shown").forEach((shown) => {
    let from = null;
    const at = (event) => {
      const frame = shown.getBoundingClientRect();
      const inside = (value) => Math.min(1, Math.max(0, value));
      return [inside((event.clientX - frame.left) / frame.width), inside((event.clientY - frame.top) / frame.height)];
    };
    const box = (event) => {
      const to = at(event);
      return {
        side: shown.dataset.side, x: Math.min(from[0], to[0]), y: Math.min(from[1], to[1]),
        w: Math.abs(from[0] - to[0]), h: Math.abs(from[1] - to[1]),
      };
    };
    const outline = document.createElement("i");
    outline.className = "growing";
    shown.addEventListener("pointerdown", (event) => {
      from = at(event);
      shown.setPointerCapture(event.pointerId);
    });
    shown.addEventListener("pointermove", (event) => {
      if (!from) return;
      place(outline, box(event));
      shown.append(outline);
    });
    shown.addEventListener("pointerup", (event) => {
      if (!from) return;
      const made = box(event);
      from = null;
      outline.remove();
      if (made.w > 0.01 && made.h > 0.01) answer.boxes.push(made);
      draw();
    });
    shown.addEventListener("pointercancel", () => {
      from = null;
      outline.remove();
    });
  });

  if (reviewer) start();
  else element("enter").hidden = false;
})();
