// The drive: uploads with progress, by picker and drop, and rows that stay fresh. All of it is an addition: the page
// works without.

import { showTime } from "./drive-time.js";

const PARALLEL = 2;
const POLL_BUSY = 5000;
const POLL_IDLE = 30000;
const PILLS = { ok: "ok", catching_up: "busy", degraded: "warn", damaged: "bad" };
const BLANK_ID = "00000000-0000-0000-0000-000000000000";

const drive = document.getElementById("drive");
const byId = (id) => document.getElementById(id);
const setText = (element, text) => { if (element.textContent !== text) element.textContent = text; };

function amount(count) {
  if (count < 1000) return `${count} byte${count === 1 ? "" : "s"}`;
  const units = ["kB", "MB", "GB", "TB", "PB"];
  let unit = -1;
  do { count /= 1000; unit += 1; } while (count >= 999.95 && unit < units.length - 1);
  return `${count.toFixed(1)} ${units[unit]}`;
}

/* Rows */

const body = byId("files").tBodies[0];

function newRow(node) {
  const row = byId(`${node.kind}-row`).content.querySelector("tr").cloneNode(true);
  row.dataset.id = node.id;
  row.querySelector(".name-link bdi").textContent = node.name;
  const encoded = encodeURIComponent(node.name);
  row.querySelector(".name-link").href = node.kind === "folder" ? `${drive.dataset.here}${encoded}/` : `${drive.dataset.files}${encoded}`;
  const form = row.querySelector("form");
  form.action = form.getAttribute("action").replace(BLANK_ID, node.id);
  row.querySelector(".delete").setAttribute("aria-label", `Delete ${node.name}`);
  return row;
}

function fill(row, node) {
  setText(row.querySelector(".size-cell"), node.size === null ? "" : amount(node.size));
  const time = row.querySelector("time");
  if (Date.parse(time.dateTime) !== Date.parse(node.modified)) showTime(time, node.modified);
  const pill = row.querySelector(".copies");
  if (pill && node.copies) {
    pill.className = `pill pill-${PILLS[node.copies.state]} copies`;
    setText(pill, node.copies.text);
  }
}

function show(listing) {
  const known = new Map([...body.rows].map((row) => [row.dataset.id, row]));
  let at = body.rows[0] ?? null;
  for (const node of listing.children) {
    const row = known.get(node.id) ?? newRow(node);
    known.delete(node.id);
    fill(row, node);
    if (row === at) at = row.nextElementSibling;
    else body.insertBefore(row, at);
  }
  for (const row of known.values()) row.remove();
  byId("files").hidden = body.rows.length === 0;
  byId("empty").hidden = body.rows.length > 0;
  showNotices(listing.notices);
}

function showNotices(texts) {
  const box = byId("notices");
  const shown = [...box.children].map((line) => line.textContent);
  if (shown.join("\n") === texts.join("\n")) return;
  box.replaceChildren(...texts.map((text) => {
    const line = document.createElement("div");
    line.className = "alert alert-warning";
    line.textContent = text;
    return line;
  }));
}

/* Freshness */

let timer = 0;
let running = null;

async function getJson(url) {
  const answer = await fetch(url, { headers: { Accept: "application/json" }, cache: "no-store" });
  if (answer.status === 401 || answer.status === 404) return Promise.reject(new Error("gone"));
  return answer.ok ? answer.json() : null;
}

async function load() {
  let busy = true;
  try {
    const cursor = drive.dataset.cursor;
    const query = cursor ? `?cursor=${encodeURIComponent(cursor)}` : "";
    const [listing, account] = await Promise.all([getJson(drive.dataset.children + query), getJson(drive.dataset.account)]);
    if (listing) {
      show(listing);
      busy = listing.notices.length > 0 || listing.children.some((node) => node.copies && node.copies.state !== "ok");
    }
    if (account) {
      const { used, limit } = account.usage;
      byId("usage").max = Math.max(1, limit);
      byId("usage").value = used;
      setText(byId("usage-text"), `${amount(used)} of ${amount(limit)} used`);
    }
  } catch (error) {
    if (error.message === "gone") { // signed out, or the folder was deleted: what is shown is the last that was
      busy = null;
    }
  }
  return busy;
}

// One at a time; a call while one runs gets what a new one finds.
async function refresh() {
  clearTimeout(timer);
  while (running) await running;
  running = load();
  const busy = await running;
  running = null;
  clearTimeout(timer);
  if (busy !== null) timer = setTimeout(tick, busy ? POLL_BUSY : POLL_IDLE);
}

function tick() {
  if (document.hidden) timer = setTimeout(tick, POLL_BUSY);
  else refresh();
}

document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });

/* Uploads */

const waiting = [];
const active = new Set();

function add(file, path) {
  const item = byId("upload-item").content.querySelector("li").cloneNode(true);
  const job = { file, path, item, request: null };
  item.querySelector(".upload-name bdi").textContent = path.join("/");
  item.querySelector(".upload-cancel").addEventListener("click", () => cancel(job));
  say(job, "waiting");
  byId("uploads-list").append(item);
  byId("uploads").hidden = false;
  waiting.push(job);
  next();
}

function next() {
  while (active.size < PARALLEL && waiting.length) start(waiting.shift());
  setText(byId("uploads-title"), active.size + waiting.length ? `Uploading (${active.size + waiting.length} left)` : "Uploads");
}

function say(job, text, state = "") {
  job.item.dataset.state = state;
  setText(job.item.querySelector(".upload-state"), text);
}

function start(job) {
  const bar = job.item.querySelector("progress");
  let url;
  try {
    url = drive.dataset.files + job.path.map(encodeURIComponent).join("/");
  } catch {
    end(job, "The name is not valid Unicode.", "failed");
    return;
  }
  active.add(job);
  const request = new XMLHttpRequest();
  job.request = request;
  request.open("PUT", url);
  request.responseType = "json";
  request.setRequestHeader("X-Requested-With", "XMLHttpRequest");
  request.upload.addEventListener("progress", (event) => {
    const share = event.total ? event.loaded / event.total : 1;
    bar.value = share * 100;
    say(job, share < 1 ? `uploading ${Math.floor(share * 100)} %` : "sealing");
  });
  request.upload.addEventListener("load", () => { bar.value = 100; say(job, "sealing"); });
  request.addEventListener("load", () => {
    if (request.status === 200 || request.status === 201) {
      end(job, request.status === 201 ? "done" : "done, a new version", "done");
    } else {
      end(job, request.response?.detail ?? `The server answered ${request.status}.`, "failed");
    }
  });
  request.addEventListener("error", () => end(job, "The connection broke off. Nothing was stored.", "failed"));
  request.addEventListener("abort", () => end(job, "cancelled", "failed"));
  say(job, "uploading 0 %");
  job.item.scrollIntoView({ block: "nearest" });
  request.send(job.file);
}

function cancel(job) {
  if (job.request) { job.request.abort(); return; }
  waiting.splice(waiting.indexOf(job), 1);
  end(job, "cancelled", "failed");
}

function end(job, text, state) {
  active.delete(job);
  job.request = null;
  say(job, text, state);
  const bar = job.item.querySelector("progress");
  bar.value = 100;
  job.item.querySelector(".upload-cancel").remove();
  setText(byId("uploads-said"), `${job.path.join("/")}: ${text}`);
  next();
  if (state === "done") refresh();
}

byId("uploads-clear").addEventListener("click", () => {
  for (const item of byId("uploads-list").querySelectorAll('li:is([data-state="done"], [data-state="failed"])')) item.remove();
  byId("uploads").hidden = !byId("uploads-list").children.length;
});

window.addEventListener("beforeunload", (event) => {
  if (active.size || waiting.length) event.preventDefault();
});

/* By picker */

const form = byId("upload-form");
form.classList.add("with-script");
const input = byId("upload-input");
input.addEventListener("change", () => {
  for (const file of input.files) add(file, [file.name]);
  input.value = "";
});

/* By drop, folders too */

let depth = 0;
const carriesFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");

drive.addEventListener("dragenter", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  depth += 1;
  drive.classList.add("drop-over");
});
drive.addEventListener("dragleave", (event) => {
  if (!carriesFiles(event)) return;
  depth = Math.max(0, depth - 1);
  if (!depth) drive.classList.remove("drop-over");
});
for (const kind of ["dragover", "drop"]) {
  window.addEventListener(kind, (event) => { if (carriesFiles(event)) event.preventDefault(); });
}
drive.addEventListener("drop", (event) => {
  depth = 0;
  drive.classList.remove("drop-over");
  if (!carriesFiles(event)) return;
  // Entries are valid in this turn only, so they are taken before anything is awaited.
  const items = [...event.dataTransfer.items].filter((item) => item.kind === "file");
  for (const item of items) {
    const entry = item.webkitGetAsEntry?.();
    if (entry) walk(entry, []);
    else if (item.getAsFile()) add(item.getAsFile(), [item.getAsFile().name]);
  }
});

async function walk(entry, above) {
  const path = [...above, entry.name];
  if (entry.isFile) {
    entry.file((file) => add(file, path), () => refused(path));
    return;
  }
  const reader = entry.createReader();
  const read = () => new Promise((resolve, reject) => { reader.readEntries(resolve, reject); });
  try {
    for (let some = await read(); some.length; some = await read()) {
      for (const inner of some) await walk(inner, path);
    }
  } catch {
    refused(path);
  }
}

function refused(path) {
  showNotices([...byId("notices").children].map((line) => line.textContent).concat(`${path.join("/")} could not be read.`));
}

/* Start: look at once when a copy is catching up, else soon enough */

const pending = [...body.rows].some((row) => row.dataset.state && row.dataset.state !== "ok") || byId("notices").children.length;
timer = setTimeout(tick, pending ? POLL_BUSY : POLL_IDLE);
