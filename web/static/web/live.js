// Live parts of a page. Elements say what they show (data-live, data-patient or data-subject); when the event
// stream names it, they get the event "changed" and htmx fetches their fragment. What is being typed stays.

const body = document.body;
const state = document.getElementById("live-state");
const moved = new Set();
let said = 0;

if (body.dataset.events && window.EventSource) connect();
leaveWhenAnotherIsLaunched();
hideWhatExpires(document);
document.addEventListener("htmx:load", (event) => hideWhatExpires(event.detail.elt));
document.addEventListener("htmx:afterSwap", (event) => compare(event.detail.elt, event.detail.target));
document.addEventListener("htmx:oobBeforeSwap", ({ detail }) => stayUnfolded(detail.target, detail.fragment));
document.addEventListener("change", (event) => {
  if (event.target.matches("[data-submits]")) event.target.form.requestSubmit();
});

function connect() {
  const source = new EventSource(`${body.dataset.events}?since=${body.dataset.since || ""}`);
  for (const kind of ["assessment", "study", "run", "model", "patient", "source"]) {
    source.addEventListener(kind, (event) => announce(kind, JSON.parse(event.data)));
  }
  source.addEventListener("hello", () => { body.dataset.stream = "open"; say(""); });
  source.onerror = () => {
    body.dataset.stream = "closed";
    say(source.readyState === EventSource.CLOSED ? "Live updates are off: reload to see changes" : "Reconnecting …");
  };
  window.addEventListener("pagehide", () => source.close());
}

// An EHR has opened another patient: what an earlier launch still shows leaves the screen at once. The server
// refuses it as well, should this browser not pass the word on.
function leaveWhenAnotherIsLaunched() {
  document.addEventListener("htmx:responseError", (event) => {
    if (event.detail.xhr.status === 409 && body.dataset.launch) location.reload();
  });
  if (!body.dataset.launch || !window.BroadcastChannel) return;
  const channel = new BroadcastChannel("tessera-launch");
  channel.onmessage = ({ data }) => {
    if (data === body.dataset.launch) return;
    document.querySelectorAll("main, section.patient").forEach((part) => part.replaceChildren());
    location.reload();
  };
  channel.postMessage(body.dataset.launch);
}

function announce(kind, { patient, subject }) {
  for (const part of document.querySelectorAll(`[data-live~="${kind}"]`)) {
    const concerns = part.dataset.patient ? part.dataset.patient === patient : !part.dataset.subject || part.dataset.subject === subject;
    if (!concerns) continue;
    if (part.hasAttribute("data-keep-typing") && isInUse(part)) continue;
    htmx.trigger(part, "changed");
  }
}

// Never replace a form somebody is filling in.
function isInUse(part) {
  if (part.contains(document.activeElement) && document.activeElement.matches("input, textarea, select")) return true;
  return [...part.querySelectorAll("textarea, input[type=text]")].some((field) => field.value !== field.defaultValue)
    || [...part.querySelectorAll("input[type=radio]")].some((field) => field.checked !== field.defaultChecked);
}

// What somebody has unfolded stays so when its card is replaced.
function stayUnfolded(old, fresh) {
  const parts = fresh.querySelectorAll("details");
  old.querySelectorAll("details").forEach((part, place) => { if (parts[place]) parts[place].open = part.open; });
}

// A row whose category has changed is in the wrong place: say so, never move rows under the pointer.
function compare(fresh, old) {
  refreshImaging();
  const row = fresh?.dataset?.patient ? document.getElementById(fresh.id) : null;
  if (!row || !row.matches("tr")) return;
  row.classList.add("just-changed");
  setTimeout(() => row.classList.remove("just-changed"), 4000);
  if (old?.dataset?.category !== undefined && old.dataset.category !== row.dataset.category) {
    moved.add(row.id);
    const bar = document.getElementById("order-changed");
    if (bar) {
      bar.querySelector("output").textContent = `${moved.size} ${moved.size === 1 ? "patient has" : "patients have"} changed category`;
      bar.hidden = false;
    }
  }
}

// A fresh score may come with another heat map: the picture is fetched again only then.
function refreshImaging() {
  const imaging = document.getElementById("imaging");
  const wanted = document.getElementById("score")?.dataset.imagingKey;
  if (imaging && wanted !== undefined && wanted !== imaging.dataset.key && imaging.dataset.asked !== wanted) {
    imaging.dataset.asked = wanted;
    htmx.trigger(imaging, "changed");
  }
}

function hideWhatExpires(root) {
  for (const part of root.querySelectorAll?.("[data-expires-ms]") ?? []) {
    setTimeout(() => part.remove(), Number(part.dataset.expiresMs));
  }
}

// At most one message in five seconds.
function say(text) {
  clearTimeout(said);
  said = setTimeout(() => { if (state && state.textContent !== text) state.textContent = text; }, text ? 5000 : 0);
}
