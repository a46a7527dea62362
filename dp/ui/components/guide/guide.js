// Guided questions: a click sets the controls, draws, goes to the moment that answers the question and points at it.
const $ = (selector) => element.querySelector(selector);
const root = $(".guide");
const BUTTONS = { Denoise: ["#generate", "#stop"], Compare: ["#compare", "#compare-stop"] };
const VIEWS = { Denoise: "#player .player", Compare: "#clock .clock", "In 2D": "#plane .plane" };
const keys = Object.keys(props.questions);
let asked = null; // the key of the question that is answered; another one, or closing it, ends what is under way

const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const clickIfShown = (selector) => document.querySelector(selector)?.checkVisibility() && document.querySelector(selector).click();

async function until(isReached, key) {
  while (asked === key && !isReached()) await pause(100);
  return asked === key;
}

function ask(key) {
  const question = props.questions[key];
  end();
  asked = key;
  for (const button of root.querySelectorAll(".questions button")) button.setAttribute("aria-pressed", String(button.dataset.key === key));
  $(".answer").hidden = false;
  $(".answer-title").textContent = question.title;
  $(".answer-text").textContent = "Drawing…";
  $(".next-question").textContent = `Next: ${props.questions[after(key)].title}`;
  [...document.querySelectorAll('[role="tab"]')].find((tab) => tab.textContent.trim() === question.tab)?.click();
  if (BUTTONS[question.tab]) trigger("ask", { question: key });
  else answer(key);
}

const after = (key) => keys[(keys.indexOf(key) + 1) % keys.length];

// The question's settings are in the controls: start the run, and answer when it has ended.
async function draw() {
  const key = asked;
  if (key === null) return;
  const { tab } = props.questions[key];
  const [start, stop] = BUTTONS[tab];
  clickIfShown(stop);
  if (!(await until(() => document.querySelector(start)?.checkVisibility(), key))) return;
  const before = shown(tab);
  document.querySelector(start).click();
  if (!(await until(() => shown(tab) !== before && isOver(tab), key))) return;
  answer(key);
}

const shown = (tab) => (tab === "Denoise" ? document.querySelector("#player .player").dataset.run : document.querySelector("#clock .clock").dataset.comparison);

function isOver(tab) {
  if (tab === "Compare") return document.querySelector("#clock .clock").getAttribute("aria-busy") === "false";
  const { ariaBusy, dataset } = document.querySelector("#player .player");
  return ariaBusy === "false" && (dataset.kept || ["failed", "stopped"].includes(dataset.state));
}

async function answer(key) {
  const { text, moment, point, tab, picture, caption, names } = props.questions[key];
  const target = VIEWS[tab];
  if (!(await until(() => document.querySelector(target)?.checkVisibility(), key))) return; // the tab is shown for the first time
  document.querySelector(target).dispatchEvent(new CustomEvent("show-moment", { detail: moment }));
  $(".answer-text").textContent = text;
  const isThere = () => document.querySelector(point)?.checkVisibility();
  if (!(await until(isThere, key))) return;
  await pause(300); // what has just been opened takes its size
  const pointed = document.querySelector(point);
  pointed.classList.add("pointed-at");
  names.forEach((name, i) => (pointed.children[i].lastElementChild.dataset.name = name));
  if (picture) pointed.append(createFigure(picture, caption));
  const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const isTall = pointed.offsetHeight > innerHeight - 2 * element.offsetHeight; // its center could hide its beginning
  pointed.scrollIntoView({ block: isTall ? "start" : "center", behavior: isCalm ? "instant" : "smooth" });
}

// A picture beside what is pointed at, while the question is open.
function createFigure(picture, caption) {
  const [figure, words, image] = ["figure", "figcaption", "img"].map((tag) => document.createElement(tag));
  figure.className = "beside";
  words.textContent = caption;
  Object.assign(image, { src: picture, alt: caption });
  figure.append(words, image);
  return figure;
}

function end() {
  asked = null;
  $(".answer").hidden = true;
  for (const button of root.querySelectorAll(".questions button")) button.setAttribute("aria-pressed", "false");
  for (const pointed of document.querySelectorAll(".pointed-at")) pointed.classList.remove("pointed-at");
  for (const figure of document.querySelectorAll(".beside")) figure.remove();
}

$(".questions").replaceChildren(...keys.map((key) => {
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: props.questions[key].title });
  button.dataset.key = key;
  button.setAttribute("aria-pressed", "false");
  button.addEventListener("click", () => (asked === key ? end() : ask(key)));
  const item = document.createElement("li");
  item.append(button);
  return item;
}));
$(".next-question").addEventListener("click", () => ask(after(asked)));
$(".end-guide").addEventListener("click", end);
root.addEventListener("guide-ready", draw);
