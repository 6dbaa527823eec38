"use strict";
const plots = JSON.parse(document.getElementById("plots").textContent);
const root = document.documentElement;
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
const isTouch = matchMedia("(pointer: coarse)").matches;

const lines = { light: ["#2763c4", "#b8500f"], dark: ["#82b1ff", "#ffab70"] }; // training, validation
const themes = {
  light: template({ ink: "#1c2330", soft: "#5a6372", grid: "#e4e7ec", paper: "#ffffff" }),
  dark: template({ ink: "#e7eaf0", soft: "#a0a9b8", grid: "#2f3744", paper: "#1a1f29" }),
};

// A template of plotly in these colours.
function template({ ink, soft, grid, paper }) {
  const axis = {
    gridcolor: grid, linecolor: grid, zerolinecolor: grid, tickcolor: soft, tickfont: { color: soft },
    title: { font: { color: soft, size: 13 } },
  };
  return {
    layout: {
      font: { color: ink, family: "system-ui, sans-serif", size: 13 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      hoverlabel: { bgcolor: paper, bordercolor: soft, font: { color: ink } },
      modebar: { bgcolor: paper, color: soft, activecolor: ink },
      xaxis: axis,
      yaxis: axis,
    },
  };
}

function theme() {
  return root.dataset.theme || (prefersDark.matches ? "dark" : "light");
}

// A plot in the colours of the theme. Where fingers scroll, a drag must not zoom: the buttons do.
function draw(id) {
  const { data, layout } = plots[id];
  const isAtlas = id.startsWith("atlas-");
  const coloured = data.map((trace) =>
    "meta" in trace ? { ...trace, line: { ...trace.line, color: lines[theme()][trace.meta] } } : trace);
  const margin = { ...layout.margin, t: isTouch && !isAtlas ? 72 : layout.margin.t }; // room for the buttons
  const looks = { margin, template: themes[theme()], uirevision: "kept", dragmode: isTouch ? false : "zoom" };
  const config = {
    responsive: true,
    displaylogo: false,
    displayModeBar: isTouch ? !isAtlas : "hover",
    modeBarButtons: [["zoom2d", "pan2d"], ["zoomIn2d", "zoomOut2d", "resetScale2d"]],
  };
  return Plotly.react(id, coloured, { ...layout, ...looks }, config).then((plot) => {
    for (const button of plot.querySelectorAll(".modebar-btn")) {
      button.tabIndex = 0;
      button.setAttribute("role", "button");
      button.setAttribute("aria-label", button.dataset.title || "");
    }
  });
}

function isShown(id) {
  return document.getElementById(id).getClientRects().length > 0;
}

function drawAll() {
  document.getElementById("theme").textContent = theme() === "dark" ? "Light" : "Dark";
  for (const id of Object.keys(plots)) if (isShown(id)) draw(id);
}

document.getElementById("theme").addEventListener("click", () => {
  root.dataset.theme = theme() === "dark" ? "light" : "dark";
  drawAll();
});
prefersDark.addEventListener("change", drawAll);
document.addEventListener("keydown", (event) => {
  const button = event.target.closest?.(".modebar-btn");
  if (button && (event.key === "Enter" || event.key === " ")) {
    event.preventDefault();
    button.dispatchEvent(new MouseEvent("click", { bubbles: true }));
  }
});
for (const details of document.querySelectorAll("details")) {
  details.addEventListener("toggle", () => {
    if (details.open) for (const plot of details.querySelectorAll(".plot")) draw(plot.id);
  });
}
drawAll();

const slider = document.getElementById("level");
if (slider) {
  const images = [...document.querySelectorAll(".levels img")];
  const ticks = [...document.querySelectorAll(".ticks span")];
  const show = () => {
    const now = Number(slider.value);
    images.forEach((image, index) => { image.hidden = index !== now; });
    ticks.forEach((tick, index) => { tick.classList.toggle("now", index === now); });
    slider.setAttribute("aria-valuetext", images[now].dataset.name);
    document.getElementById("level-text").textContent = images[now].dataset.text;
  };
  slider.addEventListener("input", show);
  show();
}

const pause = document.getElementById("pause");
if (pause) {
  const toggle = () => {
    const paused = pause.getAttribute("aria-pressed") !== "true";
    document.getElementById("moving").hidden = paused;
    document.getElementById("still").hidden = !paused;
    pause.setAttribute("aria-pressed", String(paused));
    pause.textContent = paused ? "Play" : "Pause";
  };
  pause.addEventListener("click", toggle);
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) toggle();
}

const dialog = document.getElementById("enlarged");
for (const image of document.querySelectorAll("figure:not(.animation) img")) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "enlarge";
  button.setAttribute("aria-label", `Enlarge: ${image.alt}`);
  image.replaceWith(button);
  button.append(image);
  button.addEventListener("click", () => {
    const large = dialog.querySelector("img");
    large.src = image.src;
    large.alt = image.alt;
    dialog.showModal();
  });
}
dialog.addEventListener("click", () => dialog.close());

// A unit can be looked up by its number, where pointing is not possible.
for (const input of document.querySelectorAll(".lookup input")) {
  const { text } = plots[input.dataset.plot].data[0];
  const output = input.parentElement.querySelector("output");
  input.addEventListener("input", () => {
    const wanted = `unit ${Number(input.value)}<`;
    const row = text.findIndex((cells) => cells.some((cell) => cell?.startsWith(wanted)));
    if (input.value === "" || row < 0) {
      output.textContent = `0 to ${input.max}`;
      return;
    }
    const column = text[row].findIndex((cell) => cell?.startsWith(wanted));
    output.textContent = text[row][column].split("<br>")[1];
    Plotly.Fx.hover(input.dataset.plot, { xval: column, yval: row });
  });
}
