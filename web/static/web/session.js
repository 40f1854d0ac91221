// Two minutes before an idle session ends, ask. Any request a person makes counts as activity.

const dialog = document.getElementById("session-end");
const seconds = Number(document.body.dataset.sessionSeconds);
const WARN_S = 120;
let warn = 0;
let end = 0;

if (dialog && seconds > WARN_S) {
  restart();
  document.addEventListener("htmx:afterRequest", (event) => {
    if (!event.detail.requestConfig?.headers?.["X-Live"]) restart();
  });
  const button = dialog.querySelector("[data-stay]");
  dialog.addEventListener("close", async () => {
    const token = document.querySelector("[name=csrfmiddlewaretoken]")?.value ?? "";
    const answer = await fetch(button.dataset.stay, { method: "POST", headers: { "X-CSRFToken": token } });
    if (answer.ok && !answer.redirected) restart(); else location.reload();
  });
}

function restart() {
  clearTimeout(warn);
  clearTimeout(end);
  warn = setTimeout(() => dialog.showModal(), (seconds - WARN_S) * 1000);
  end = setTimeout(() => location.reload(), (seconds + 2) * 1000);
}
