"use strict";
// Wipe, zoom and overlay. The pictures are those of the page; nothing is loaded, and no text becomes markup.
(() => {
  const section = document.getElementById("wipe");
  const cases = [...document.querySelectorAll(".case")];
  if (!section || !cases.length) return;
  const find = (name) => section.querySelector(`[data-part="${name}"]`);
  const [stage, sheet, under, over, map, bar] = ["stage", "sheet", "under", "over", "map", "bar"].map(find);
  const [picture, left, right, place, fade, fadeLabel] =
    ["case", "left", "right", "place", "fade", "fade-label"].map(find);
  let zoom = 0; // 0: as wide as the page; else screen pixels a picture's pixel

  const option = (select, text, value) => {
    const entry = document.createElement("option");
    entry.textContent = text;
    entry.value = value;
    select.append(entry);
  };
  const images = (number) => [...cases[number].querySelectorAll(".picture img")];
  cases.forEach((item, k) => option(picture, `${k + 1}. ${item.querySelector("figcaption").textContent.trim()}`, k));
  images(0).forEach((image, k) => [left, right].forEach((select) => option(select, image.dataset.name, k)));
  left.value = 0;
  right.value = images(0).length - 1;

  const resize = () => {
    const natural = under.naturalWidth || 1;
    sheet.style.width = zoom ? `${(natural * zoom) / window.devicePixelRatio}px` : "100%";
    sheet.classList.toggle("pixels", zoom > 0 || natural < 400);
  };
  const wipe = () => {
    over.style.clipPath = `inset(0 0 0 ${place.value}%)`;
    bar.style.left = `${place.value}%`;
  };
  const blend = () => {
    map.style.opacity = fade.value / 100;
  };
  const show = () => {
    const all = images(picture.value);
    under.src = all[left.value].src;
    over.src = all[right.value].src;
    under.alt = all[left.value].alt;
    over.alt = all[right.value].alt;
    const made = cases[picture.value].querySelector(".invention");
    map.hidden = fadeLabel.hidden = !made;
    if (made) map.src = made.src;
    find("left-name").textContent = all[left.value].dataset.name;
    find("right-name").textContent = all[right.value].dataset.name;
  };
  under.addEventListener("load", resize);
  window.addEventListener("resize", resize);
  [picture, left, right].forEach((select) => select.addEventListener("change", show));
  place.addEventListener("input", wipe);
  fade.addEventListener("input", blend);
  section.querySelectorAll("[data-zoom]").forEach((button) =>
    button.addEventListener("click", () => {
      zoom = Number(button.dataset.zoom);
      section.querySelectorAll("[data-zoom]").forEach((other) =>
        other.setAttribute("aria-pressed", String(other === button)));
      resize();
    }));
  const drag = (event) => {
    const box = sheet.getBoundingClientRect();
    place.value = Math.min(100, Math.max(0, (100 * (event.clientX - box.left)) / box.width));
    wipe();
  };
  sheet.addEventListener("pointerdown", (event) => {
    sheet.setPointerCapture(event.pointerId);
    drag(event);
  });
  sheet.addEventListener("pointermove", (event) => {
    if (sheet.hasPointerCapture(event.pointerId)) drag(event);
  });
  section.hidden = false;
  show();
  wipe();
  blend();
})();
