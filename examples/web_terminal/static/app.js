import { FitAddon } from "/vendor/addon-fit/lib/addon-fit.mjs";
import { Terminal } from "/vendor/xterm/lib/xterm.mjs";

const $ = (id) => document.getElementById(id);
const make = (tag, properties) => Object.assign(document.createElement(tag), properties);
let socket, me;

function show(view, notice = "", label = "", onclick = undefined) {
  for (const each of ["login", "list", "terminal"]) $(each).hidden = each !== view;
  $("notice").replaceChildren(make("span", { textContent: notice }), label && make("button", { textContent: label, onclick }));
  $("notice").hidden = !notice;
}

async function call(path, body) {
  const answer = await fetch(path, { method: body ? "POST" : "GET", body: body && JSON.stringify(body) });
  if (!answer.ok) throw Object.assign(new Error(await answer.text()), { expired: answer.status === 401 });
  return answer.json();
}

const act = (action) => action().catch(({ message, expired }) => {
  const notice = expired && !me ? "" : message; // who has just opened the page sees that he has to log in
  if (expired) me = undefined;
  show(me ? "list" : "login", notice);
});
const take = (path, reason = $("reason").value) => act(async () => list(await call("/revoke", { path, reason })));

async function list(notice) {
  me = await call("/live");
  $("me").textContent = `as ${me.user}`;
  const rows = me.user === "admin" ? [{ path: [], inside: [] }, ...me.live] : me.live;
  $("live").replaceChildren(...rows.map(({ path, inside }) => {
    const text = path.at(-1) ?? "everybody", [row, name, last] = ["tr", "td", "td"].map((tag) => make(tag));
    name.append(path.length === 3 && path[0] === me.user ? make("a", { textContent: text, href: `#${text}` }) : text);
    name.style.paddingLeft = `${0.5 + path.length * 1.5}rem`;
    last.append(make("button", { textContent: "Take away", onclick: () => take(path) }));
    row.append(name, make("td", { textContent: inside.join("\n") }), last);
    return row;
  }));
  show("list", notice);
}

function attach(name) {
  show("terminal");
  const term = (globalThis.term = new Terminal({ scrollback: 5000 })), fit = new FitAddon();
  const mine = (socket = new WebSocket(`/terminals/${name}`));
  const send = (data) => mine.readyState === WebSocket.OPEN && mine.send(data);
  $("terminal").replaceChildren();
  term.open($("terminal"));
  term.loadAddon(fit);
  term.onData((text) => text.match(/.{1,16000}/gsu).forEach((part) => send(new TextEncoder().encode(part))));
  term.onResize(() => mine.onopen());
  onresize = () => fit.fit();
  mine.binaryType = "arraybuffer";
  mine.onopen = () => (fit.fit(), term.focus(), send(JSON.stringify([term.rows, term.cols])));
  mine.onmessage = ({ data }) => term.write(new Uint8Array(data), () => send('"read"'));
  mine.onclose = ({ code, reason }) => {
    if (mine !== socket) return; // it was left for another view
    if (code === 4000) show("terminal", `This terminal is closed. ${reason}`, "Continue", () => (location.hash = ""));
    else show("terminal", `The connection is lost. ${reason || code}`, "Attach again", go);
    fit.fit();
  };
}

function go() {
  socket?.close();
  socket = undefined;
  location.hash ? attach(location.hash.slice(1)) : act(list);
}

$("login").onsubmit = (event) => {
  event.preventDefault();
  act(async () => (await call("/login", Object.fromEntries(new FormData($("login")))), $("login").reset(), go()));
};
$("start").onclick = () => act(async () => (location.hash = await call("/terminals", {})));
$("logout").onclick = () => take([me.user, me.token], "logged out");
onhashchange = go;
setInterval(() => $("list").hidden || act(() => list($("notice").innerText)), 2000);
go();
