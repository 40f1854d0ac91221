// The image: heat map on demand, window and level, invert, zoom and pan. Grey values are 0 to 255 as sent.

document.querySelectorAll("[data-viewer]").forEach(start);
document.addEventListener("htmx:load", (event) => {
  const root = event.detail.elt;
  if (root.matches?.("[data-viewer]")) start(root);
  root.querySelectorAll?.("[data-viewer]").forEach(start);
});

async function start(root) {
  if (root.dataset.started) return;
  root.dataset.started = "yes";
  const find = (name) => root.querySelector(`[data-role="${name}"]`);
  const plain = find("plain");
  const canvas = find("canvas");
  await plain.decode().catch(() => undefined);
  if (!plain.naturalWidth) { find("failed").hidden = false; return; }

  const width = plain.naturalWidth;
  const height = plain.naturalHeight;
  const grey = readGrey(plain, width, height);
  const shown = new OffscreenCanvas(width, height);
  const pen = shown.getContext("2d");
  const pixels = pen.createImageData(width, height);
  const first = { window: 255, level: 128, zoom: 1, x: 0, y: 0, invert: false, heat: false, opacity: 0.5 };
  const view = { ...first };
  let heat = null;

  canvas.width = Math.min(1024, Math.max(width, 512));
  canvas.height = Math.round((canvas.width * height) / width);
  canvas.parentElement.setAttribute("data-ready", "");
  const face = canvas.getContext("2d");
  canvas.hidden = false;
  plain.hidden = true;
  find("controls").hidden = false;
  rewindow();

  bind("opacity", (value) => { view.opacity = value / 100; });
  for (const [name, key] of [["ww", "window"], ["wl", "level"]]) {
    for (const part of root.querySelectorAll(`[data-role="${name}"]`)) {
      part.addEventListener("input", () => { view[key] = clamp(Number(part.value), Number(part.min), Number(part.max)); rewindow(); });
    }
  }
  find("overlay")?.addEventListener("click", toggleHeat);
  find("invert").addEventListener("click", () => { view.invert = !view.invert; rewindow(); });
  find("zoom-in").addEventListener("click", () => zoom(1.25));
  find("zoom-out").addEventListener("click", () => zoom(0.8));
  find("reset").addEventListener("click", () => { Object.assign(view, first); rewindow(); });
  find("preset").addEventListener("change", (event) => {
    const [w, l] = event.target.value.split("/").map(Number);
    Object.assign(view, { window: w, level: l });
    rewindow();
  });
  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches?.("input:not([type=range]):not([type=checkbox]):not([type=radio]), textarea, select");
    const wanted = event.key === "h" && !event.ctrlKey && !event.metaKey && !event.altKey;
    if (wanted && !typing && root.isConnected && find("keys")?.checked) toggleHeat();
  });
  drag();

  async function toggleHeat() {
    if (!root.dataset.heat) return;
    if (!heat) {
      heat = new Image();
      heat.src = root.dataset.heat;
      await heat.decode().catch(() => { heat = null; });
    }
    view.heat = Boolean(heat) && !view.heat;
    draw();
  }

  function bind(name, change) {
    find(name)?.addEventListener("input", (event) => { change(Number(event.target.value)); draw(); });
  }

  function zoom(by) {
    view.zoom = clamp(view.zoom * by, 1, 8);
    draw();
  }

  // Drag: window and level at 1:1, pan when zoomed. The sliders and buttons do the same without dragging.
  function drag() {
    let from = null;
    canvas.addEventListener("pointerdown", (event) => { from = { x: event.clientX, y: event.clientY, ...{ view: { ...view } } }; canvas.setPointerCapture(event.pointerId); });
    canvas.addEventListener("pointermove", (event) => {
      if (!from) return;
      const dx = event.clientX - from.x;
      const dy = event.clientY - from.y;
      if (view.zoom > 1) {
        const scale = canvas.width / canvas.clientWidth;
        Object.assign(view, { x: from.view.x + dx * scale, y: from.view.y + dy * scale });
        draw();
      } else {
        view.window = clamp(from.view.window + dx, 1, 255);
        view.level = clamp(from.view.level + dy, 0, 255);
        rewindow();
      }
    });
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { from = null; });
  }

  function rewindow() {
    const low = view.level - view.window / 2;
    const table = new Uint8ClampedArray(256);
    for (let i = 0; i < 256; i += 1) {
      const value = ((i - low) / view.window) * 255;
      table[i] = view.invert ? 255 - clamp(value, 0, 255) : value;
    }
    const data = pixels.data;
    for (let i = 0, j = 0; i < grey.length; i += 1, j += 4) {
      data[j] = data[j + 1] = data[j + 2] = table[grey[i]];
      data[j + 3] = 255;
    }
    pen.putImageData(pixels, 0, 0);
    draw();
  }

  function draw() {
    const w = canvas.width * view.zoom;
    const h = canvas.height * view.zoom;
    view.x = clamp(view.x, -(w - canvas.width) / 2, (w - canvas.width) / 2);
    view.y = clamp(view.y, -(h - canvas.height) / 2, (h - canvas.height) / 2);
    const left = (canvas.width - w) / 2 + view.x;
    const top = (canvas.height - h) / 2 + view.y;
    face.globalAlpha = 1;
    face.fillStyle = "#05090c";
    face.fillRect(0, 0, canvas.width, canvas.height);
    face.imageSmoothingQuality = "high";
    face.drawImage(shown, left, top, w, h);
    if (view.heat && heat) {
      face.globalAlpha = view.opacity;
      face.drawImage(heat, left, top, w, h);
    }
    reflect();
  }

  function reflect() {
    for (const [name, value] of [["ww", view.window], ["wl", view.level]]) {
      for (const part of root.querySelectorAll(`[data-role="${name}"]`)) if (document.activeElement !== part) part.value = Math.round(value);
    }
    const toggle = find("overlay");
    if (toggle) {
      toggle.setAttribute("aria-pressed", String(view.heat));
      find("opacity").disabled = !view.heat;
      find("opacity").value = Math.round(view.opacity * 100);
      find("opacity-shown").textContent = `${Math.round(view.opacity * 100)} %`;
      find("heat-note").hidden = !view.heat;
    }
    find("invert").setAttribute("aria-pressed", String(view.invert));
    find("zoom-shown").textContent = view.zoom > 1 ? `${view.zoom.toFixed(1)} ×` : "";
    canvas.setAttribute("aria-label", `${root.dataset.label}${view.heat ? ", heat map shown" : ", heat map off"}`);
  }
}

function readGrey(image, width, height) {
  const pad = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  pad.drawImage(image, 0, 0);
  const { data } = pad.getImageData(0, 0, width, height);
  const grey = new Uint8Array(width * height);
  for (let i = 0; i < grey.length; i += 1) grey[i] = data[i * 4];
  return grey;
}

function clamp(value, low, high) {
  return Math.min(high, Math.max(low, Number.isFinite(value) ? value : low));
}
