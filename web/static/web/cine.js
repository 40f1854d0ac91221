// The cine player: starts paused, steps frame by frame, fetches eight frames ahead, stops when hidden.

const AHEAD = 8;
const still = matchMedia("(prefers-reduced-motion: reduce)");
document.querySelectorAll("[data-cine]").forEach(start);
document.addEventListener("htmx:load", (event) => {
  const root = event.detail.elt;
  if (root.matches?.("[data-cine]")) start(root);
  root.querySelectorAll?.("[data-cine]").forEach(start);
});

function start(root) {
  if (root.dataset.started) return;
  root.dataset.started = "yes";
  const find = (name) => root.querySelector(`[data-role="${name}"]`);
  const count = Number(root.dataset.frames);
  const frameMs = Number(root.dataset.frameMs) || 40;
  const kept = root.dataset.kept ? root.dataset.kept.split(",").map(Number) : [];
  const canvas = find("canvas");
  const face = canvas.getContext("2d");
  const held = new Map();
  let now = 0;
  let timer = 0;

  find("controls").hidden = false;
  show(0);

  find("play").addEventListener("click", () => (timer ? pause() : play()));
  find("back").addEventListener("click", () => step(-1));
  find("on").addEventListener("click", () => step(1));
  find("scrub").addEventListener("input", (event) => { pause(); show(Number(event.target.value) - 1); });
  find("peak")?.addEventListener("click", (event) => { pause(); show(Number(event.currentTarget.dataset.frame)); });
  root.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select, summary, a")) return;
    if (event.key === " " && !event.target.matches("button")) { event.preventDefault(); if (timer) pause(); else play(); }
    if (event.key === "ArrowLeft") { event.preventDefault(); step(-1); }
    if (event.key === "ArrowRight") { event.preventDefault(); step(1); }
  });
  document.addEventListener("visibilitychange", () => { if (document.hidden) pause(); });

  function frame(index) {
    if (!held.has(index)) {
      const image = new Image();
      image.src = root.dataset.src.replace("/0.png", `/${index}.png`);
      held.set(index, image.decode().then(() => image));
      held.get(index).catch(() => held.delete(index));
    }
    return held.get(index);
  }

  async function show(index) {
    now = (index + count) % count;
    const wanted = now;
    for (let i = 1; i <= AHEAD; i += 1) frame((wanted + i) % count).catch(() => undefined);
    const image = await frame(wanted).catch(() => null);
    if (!image) { find("failed").hidden = false; pause(); return; }
    if (wanted !== now) return;
    if (canvas.hidden) {
      canvas.width = image.naturalWidth;
      canvas.height = image.naturalHeight;
      canvas.hidden = false;
      find("plain").hidden = true;
    }
    face.drawImage(image, 0, 0, canvas.width, canvas.height);
    find("frame").textContent = `Frame ${wanted + 1} of ${count}, ${Math.round(wanted * frameMs)} ms`;
    find("scrub").value = wanted + 1;
    const nearest = kept.reduce((best, at, i) => (Math.abs(at - wanted) < Math.abs(kept[best] - wanted) ? i : best), 0);
    root.querySelectorAll("[data-strip] rect").forEach((bar, i) => bar.classList.toggle("now", i === nearest));
  }

  function step(by) { pause(); show(now + by); }

  function play() {
    const speed = Number(find("speed").value) || 1;
    const pace = still.matches ? Math.max(500, frameMs / speed) : frameMs / speed;
    const tick = async () => { await show(now + 1); if (timer) timer = setTimeout(tick, pace); };
    timer = setTimeout(tick, pace);
    said("Pause", true);
  }

  function pause() { clearTimeout(timer); timer = 0; said("Play", false); }

  function said(text, pressed) { find("play").textContent = text; find("play").dataset.playing = String(pressed); }
}
