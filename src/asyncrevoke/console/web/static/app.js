import { FitAddon } from "/xterm/addon-fit.mjs";
import { Terminal } from "/xterm/xterm.mjs";

const ENDED = 4401;
const $ = (selector, within = document) => within.querySelector(selector);
const several = (number, what) => `${number || "no"} ${what}${number === 1 ? "" : "s"}`;
const same = (path, other) => path.length === other.length && path.every((part, n) => part === other[n]);
let me, admin, live, shares, starts; // [user, token], and what there is, as the server tells it; undefined when not logged in
let feed, lost; // where it tells, and whether that was cut off
let socket, gone; // that of the terminal on this page, and why it was closed
let yours, asks = true; // whether this page has the keyboard of a share; whether users have passwords here

// -- what the page says --

function say(text = "", kind = "good", label = "", onclick = undefined) {
  const notice = $("#notice");
  if (notice.dataset.said === text + label) return; // or it would be read out again
  notice.dataset.said = text + label;
  notice.className = kind;
  notice.role = kind === "bad" ? "alert" : "status";
  notice.replaceChildren(...(text ? [text] : []));
  if (label) notice.append(Object.assign(document.createElement("button"), { textContent: label, onclick }));
}

function show(view) {
  for (const each of ["login", "list", "terminal"]) $(`#${each}`).hidden = each !== view;
  $("#logout").hidden = !me;
  $("#me").textContent = me ? `${me[0]} (${find(me)?.device})` : "";
  document.title = "Consoles";
}

const refresh = () => feed.readyState === WebSocket.OPEN && feed.send("");
const attempt = (action) => action.catch(({ message }) => say(`That did not work: ${message}.`, "bad"));

async function call(path, body) {
  const answer = await fetch(path, { method: "POST", body: JSON.stringify(body) });
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

// -- what there is --

const find = (path) => live?.find((each) => same(each.path, path));
const below = (path, depth) => live.filter((each) => each.path.length === depth && same(each.path.slice(0, path.length), path));

function clock(seconds) {
  const then = new Date(seconds * 1000), today = then.toDateString() === new Date().toDateString();
  return then.toLocaleString([], { weekday: today ? undefined : "short", hour: "2-digit", minute: "2-digit" });
}

const sharing = (name) => shares?.find((each) => each.name === name);

/** The same for a share ("", name), and for somebody who is attached there. */
function describeShare([, name, person]) {
  const it = sharing(name);
  if (name === undefined) return { name: "Shares", about: shares.length ? "" : "Nothing is shared on this machine." };
  if (person !== undefined) return {
    name: person, badge: person === it.keyboard ? "keyboard" : "", end: "Take off…",
    title: `Take ${person} off “${name}”?`, text: "The others stay.", done: `${person} is off “${name}”.`,
  };
  return {
    name, badge: it.state === "live" ? "" : it.state, href: `#/${encodeURIComponent(name)}`, open: "Open", end: "Take away…", runs: it.device,
    about: [it.reason, several(it.people.length, "user")].filter(Boolean).join(" · "),
    title: `Take “${name}” away from everybody?`, text: `${several(it.people.length, "user")} lose it.`, done: `“${name}” is taken away.`,
  };
}

/** What a row says, and what the dialog asks that ends it. */
function describe(path) {
  if (path[0] === "") return describeShare(path);
  const it = find(path), [user, , name] = path, mine = user === me[0];
  const logins = several(below(path, 2).length, "login"), terminals = several(below(path, 3).length, "terminal");
  switch (path.length) {
    case 0: return {
      name: "Everybody", about: `${logins}, ${terminals}`, end: "Log everybody out…",
      title: "Log everybody out?", text: `${logins} and ${terminals} end, yours too.`, done: "Everybody is logged out.",
    };
    case 1: return {
      name: user, badge: mine ? "you" : "", about: `${logins}, ${terminals}`, end: "Log out everywhere…",
      title: `Log ${mine ? "yourself" : user} out everywhere?`, text: `${logins} and ${terminals} end.`, done: `${user} is logged out everywhere.`,
    };
    case 2: return {
      name: it.device, badge: same(path, me) ? "this page" : "", about: `since ${clock(it.since)}, until ${clock(it.until)}, from ${it.client}`, end: "Log out…",
      title: `Log out ${mine ? "" : `${user} on `}“${it.device}”?`, text: `This login and its ${terminals} end.`, done: `The login “${it.device}” of ${user} has ended.`,
    };
    default: return {
      name, href: `#${path.filter((_, n) => n !== 1).map(encodeURIComponent).join("/")}`, open: mine ? "Open" : "Watch", runs: it.runs,
      about: it.people.join(", ") || "nobody looks at it", end: "Close…",
      title: `Close the terminal “${name}”?`, text: it.runs ? `What runs in it ends: ${it.runs}` : "What runs in it ends.", done: `The terminal “${name}” is closed.`,
    };
  }
}

function ask(path) {
  const dialog = $("#ask"), form = $("form", dialog), go = $(".danger", dialog), error = $("[role=alert]", dialog);
  const { title, text, end, done } = describe(path);
  let sure = path.length > 0; // everybody is asked twice
  const fill = (title, text, label) => { $("h2", dialog).textContent = title; $("p", dialog).textContent = text; go.textContent = label; };
  fill(title, text, end.replace("…", ""));
  form.reset();
  error.hidden = true;
  form.reason.parentElement.hidden = go.disabled = false;
  form.onsubmit = async (event) => {
    event.preventDefault();
    if (!sure) {
      sure = form.reason.parentElement.hidden = true;
      fill("Really everybody?", `${text} Nobody can undo this.`, "Yes, everybody");
      return $("[type=button]", dialog).focus();
    }
    go.disabled = true;
    try {
      await call("/revoke", { path: path.join("/"), reason: form.reason.value });
      dialog.close();
      if (me) say(done), refresh();
    } catch ({ message }) {
      error.textContent = `That did not work: ${message}`;
      error.hidden = go.disabled = false;
    }
  };
  dialog.showModal();
}

// -- the list --

const rows = new Map(); // by path. They stay, so that the focus does

function list() {
  const users = [...new Set(live.map(({ path }) => path[0]))].sort((a, b) => (b === me[0]) - (a === me[0]) || (a < b ? -1 : 1));
  const paths = [];
  if (shares) paths.push([""]);
  for (const { name, people } of shares ?? []) paths.push(["", name], ...people.map((person) => ["", name, person]));
  if (admin && users.length > 1) paths.push([]);
  for (const user of users) {
    paths.push([user]);
    for (const { path } of below([user], 2)) paths.push(path, ...below(path, 3).map((each) => each.path));
  }
  const wanted = paths.map((path, n) => {
    const id = JSON.stringify(path), row = rows.get(id) ?? $("#row").content.firstElementChild.cloneNode(true);
    const { name, badge = "", about = "", end = "", href, open, runs = "" } = describe(path), link = $("div a", row), button = $("nav a", row);
    rows.set(id, row);
    row.className = `depth${path.length}${path.length > 1 && !(paths[n + 1]?.length > 1) ? " last" : ""}`;
    for (const [part, text] of [["b", href ? "" : name], ["div a", href ? name : ""], [".badge", badge], ["code", runs], ["p span", about], [".button", open ?? ""], [".end", end]]) {
      if ($(part, row).textContent !== text) $(part, row).textContent = text;
      $(part, row).hidden = !text;
    }
    if (href) link.href = button.href = href;
    button.ariaLabel = `${open} ${name}`;
    $(".end", row).ariaLabel = `${end.replace("…", "")}: ${name}`;
    $(".end", row).onclick = () => ask(path);
    return row;
  });
  wanted.forEach((row, n) => $("#rows").children[n] === row || $("#rows").insertBefore(row, $("#rows").children[n]));
  for (const [id, row] of rows) if (!wanted.includes(row)) row.remove(), rows.delete(id);
  const taken = below([me[0]], 3).map(({ path }) => path[2]), input = $("#start").elements.name;
  let free = "terminal";
  for (let n = 2; taken.includes(free); n++) free = `terminal ${n}`;
  if (document.activeElement !== input && (!input.value || input.value === input.dataset.free)) input.value = input.dataset.free = free;
}

// -- a terminal --


/** The user and the name that the address says, whatever somebody has typed there. */
function where() {
  try {
    const [user, name = "?"] = location.hash.slice(1).split("/").map(decodeURIComponent);
    return [user, name];
  } catch {
    return ["?", "?"];
  }
}

const here = () => live.find(({ path }) => path.length === 3 && same([path[0], path[2]], where()));

function attach([user, name]) {
  const shared = user === "", watching = !shared && user !== me[0], fit = new FitAddon();
  const term = (globalThis.term = new Terminal({ scrollback: 5000, disableStdin: watching, theme: { background: "#0d1016" } }));
  const mine = (socket = new WebSocket(`/${shared ? "shares" : `terminals/${encodeURIComponent(user)}`}/${encodeURIComponent(name)}`));
  const send = (data) => mine.readyState === WebSocket.OPEN && mine.send(data);
  $("#screen > div").replaceChildren();
  $("#watching").hidden = !watching;
  $("#keys").hidden = $("#hint").hidden = watching;
  term.open($("#screen > div"));
  term.attachCustomKeyEventHandler(({ key, shiftKey }) => !(key === "Escape" && shiftKey && ($("#back").focus(), true)));
  if (!watching) {
    term.loadAddon(fit);
    term.onData((text) => text.match(/.{1,16000}/gsu).forEach((part) => send(new TextEncoder().encode(part))));
    term.onResize(({ rows, cols }) => send(JSON.stringify([rows, cols])));
    const sized = new ResizeObserver(() => mine === socket ? fit.fit() : sized.disconnect());
    mine.onopen = () => (send(JSON.stringify([term.rows, term.cols])), sized.observe($("#screen > div")), term.focus());
  }
  mine.binaryType = "arraybuffer";
  mine.onmessage = ({ data }) => typeof data === "string" ? heard(name, JSON.parse(data)) : term.write(new Uint8Array(data), () => send('"read"'));
  mine.onclose = ({ reason }) => {
    if (mine !== socket) return; // it was left for another view
    gone = reason || "the connection was lost";
    refresh(); // is the terminal closed, or this page's look at it?
  };
}

/** What a share tells beside its output: records of the control protocol. */
function heard(name, { keyboard, yours: mine, reason, away, back, said, by, refused, message }) {
  if (mine !== undefined) {
    yours = mine;
    globalThis.term.options.disableStdin = !mine;
    say(mine ? "" : `${keyboard ?? "Nobody"} has the keyboard${reason ? `: ${reason}` : ""}.`, "told");
    terminal();
  }
  if (away !== undefined) say(`${name} is away: ${away}.`, "told");
  if (back !== undefined) say(`${name} is back.`);
  if (said !== undefined) say(`${by}: ${said}`, "told");
  if (refused !== undefined) say(message, "bad");
}

function terminal() {
  const [user, name] = where(), shared = user === "", it = shared ? sharing(name) : here(), mine = shared || user === me[0];
  $("#keyboard").hidden = !shared || gone !== undefined || yours === undefined || (yours && it?.people.length < 2);
  $("#keyboard").textContent = yours ? "Give the keyboard back" : "Take the keyboard";
  $("#bar .end").textContent = shared ? "Take away…" : "Close…";
  $("#bar h1").textContent = mine ? name : `${name} of ${user}`;
  $("#bar code").textContent = it?.runs ?? "";
  $("#bar p span").textContent = it?.people.join(", ") ?? "";
  $("#bar .end").hidden = !it;
  $("#screen").classList.toggle("gone", gone !== undefined);
  $("#bar .end").onclick = () => ask(shared ? ["", name] : it.path);
  document.title = `${name}${it?.runs ? `: ${it.runs}` : ""}`;
  if (it && !mine) globalThis.term.resize(it.size[1], it.size[0]);
  if (gone === undefined) return;
  if (it) say(`This page was cut off: ${gone}.`, "told", "Attach again", go);
  else say(`This terminal is closed: ${gone}.`, "told", "Back to the list", () => (location.hash = ""));
}

// -- what happens --

function leave() {
  socket?.close();
  globalThis.term?.dispose();
  socket = gone = yours = globalThis.term = undefined;
}

/** To where the address says. */
function go() {
  if (!me) return;
  leave();
  say();
  show(location.hash.length > 1 ? "terminal" : "list");
  if (location.hash.length > 1) attach(where());
  render();
}

const render = () => ($("#list").hidden ? terminal() : list());

function ended(reason) {
  if (me) history.replaceState(null, "", "/"); // what was there is no longer
  me = live = shares = undefined;
  leave();
  $("#ask").close();
  show("login");
  say(reason && `Your login has ended: ${reason}. You may log in again.`, "told");
  const { name, password } = $("#login form").elements;
  if (!asks && !reason) return $("#login form").requestSubmit();
  (name.value ? password : name).focus();
}

function connect() {
  feed = new WebSocket("/live");
  feed.onmessage = ({ data }) => {
    const fresh = !me || lost;
    ({ me, admin, live, shares, starts } = JSON.parse(data));
    $("#start").hidden = !starts;
    lost = false;
    fresh ? go() : render();
  };
  feed.onclose = ({ code, reason }) => {
    if (code === ENDED) return ended(reason);
    lost = true;
    say(`The connection is lost${reason && `: ${reason}`}. Trying again…`, "bad");
    setTimeout(connect, 2000);
  };
}

function device() {
  const known = (names) => names.find((name) => navigator.userAgent.includes(name.slice(0, 3)));
  return `${known(["Firefox", "Edge", "Chrome", "Safari"]) ?? "Browser"} on ${known(["Android", "iPhone", "iPad", "Windows", "Macintosh", "Linux"]) ?? "a device"}`;
}

const submits = (form, action) => (form.onsubmit = (event) => {
  event.preventDefault();
  attempt(action(Object.fromEntries(new FormData(form))));
});

$("#login [name=device]").value = localStorage.device ?? device();
submits($("#login form"), async (fields) => {
  localStorage.device = fields.device;
  await call("/login", fields);
  $("#login [name=password]").value = "";
  connect();
});
submits($("#start"), async ({ name }) => {
  await call("/terminals", { name });
  $("#start").reset();
  location.hash = [me[0], name].map(encodeURIComponent).join("/");
});
$("#logout").onclick = () => below(me, 3).length ? ask(me) : attempt(call("/revoke", { path: me.join("/"), reason: "you logged out" }));
$("#ask [type=button]").onclick = () => $("#ask").close();
for (const [label, ariaLabel, key] of [["Esc", "Escape", "\x1b"], ["Tab", "Tab", "\t"], ["^C", "Control C", "\x03"], ["^D", "Control D", "\x04"],
  ["↑", "Up", "\x1b[A"], ["↓", "Down", "\x1b[B"], ["←", "Left", "\x1b[D"], ["→", "Right", "\x1b[C"]]) {
  const button = Object.assign(document.createElement("button"), { textContent: label, ariaLabel, onclick: () => globalThis.term?.input(key) });
  button.onpointerdown = (event) => event.preventDefault(); // the keyboard of a phone stays
  $("#keys").append(button);
}
$("#keyboard").onclick = () => socket.send(yours ? '"give"' : '"take"');

({ asks } = await (await fetch("/login")).json());
for (const field of ["name", "password"]) {
  const { elements } = $("#login form");
  elements[field].required = asks;
  elements[field].parentElement.hidden = !asks;
}
const [, name, password] = location.hash.match(/^#login=([^:]*):(.*)$/) ?? []; // as `asyncrevoke web` prints it
if (name !== undefined) {
  history.replaceState(null, "", "/");
  Object.assign($("#login form").elements.name, { value: decodeURIComponent(name) });
  Object.assign($("#login form").elements.password, { value: password });
  $("#login form").requestSubmit();
} else connect();
onhashchange = go;
