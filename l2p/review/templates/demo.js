"use strict";
(() => {
  const element = (id) => document.getElementById(id);
  const names = { l2p: "l2p: the student, no decoder", vae: "vae: its teacher and decoder", pid: "pid: its teacher, pixel decoder" };

  const ask = async (path, body) => {
    const options = body === undefined ? {} :
      { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
    const reply = await fetch(path, options);
    const value = await reply.json();
    if (!reply.ok) throw new Error(typeof value.detail === "string" ? value.detail : "the request was refused");
    return value;
  };
  const guarded = async (work) => {
    element("draw").disabled = true;
    element("error").hidden = true;
    try {
      await work();
    } catch (error) {
      element("error").textContent = error instanceof TypeError
        ? "The demo does not answer: start l2p demo again and reload." : error.message;
      element("error").hidden = false;
    } finally {
      element("draw").disabled = false;
    }
  };
  const draw = () => guarded(async () => {
    const wish = {
      prompt: element("prompt").value, path: element("path").value,
      seed: Number(element("seed").value), height: Number(element("height").value), width: Number(element("width").value),
    };
    element(element("empty").hidden ? "caption" : "empty").textContent = "Drawing …";
    const made = await ask("/api/draw", wish).catch((error) => {
      element("caption").textContent = "";
      element("empty").textContent = "The picture appears here.";
      throw error;
    });
    element("picture").src = made.picture;
    element("picture").alt = wish.prompt;
    element("picture").hidden = false;
    element("empty").hidden = true;
    const time = document.createElement("strong");
    time.textContent = `${made.milliseconds.toFixed(0)} ms`;
    element("caption").replaceChildren(time, ` ${wish.path}, ${made.width} × ${made.height}, seed ${wish.seed}: ${wish.prompt}`);
  });

  element("form").addEventListener("submit", (event) => {
    event.preventDefault();
    draw();
  });
  element("another").addEventListener("click", () => {
    element("seed").value = Math.floor(Math.random() * 2147483647);
    if (element("form").reportValidity()) draw();
  });
  guarded(async () => {
    const about = await ask("/api/about");
    element("title").textContent = about.name;
    element("height").value = about.height;
    element("width").value = about.width;
    for (const path of about.paths) {
      const option = document.createElement("option");
      option.value = path;
      option.textContent = path === "pid" ? `${names[path]}, ${about.scale} × as large` : names[path];
      element("path").append(option);
    }
  });
})();
