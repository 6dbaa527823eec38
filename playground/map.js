// The condition map: a tile, which is a button, for each unit at its place. Arrow keys move to the next one, past places
// without any.
const { places, shape: [rows, columns], ratio } = props;
const group = document.createElement('div');
group.className = 'map';
group.setAttribute('role', 'group');
group.setAttribute('aria-label', 'Condition map: choose a tile');
group.style.gridTemplateColumns = `repeat(${columns}, 1fr)`;
group.classList.toggle('dense', columns > 16);
const share = (index, number) => (number > 1 ? (100 * index) / (number - 1) : 0);
const unitAt = new Map(places.map(([row, column], unit) => [`${row} ${column}`, unit]));
const tiles = places.map(([row, column], unit) => {
  const tile = document.createElement('button');
  tile.type = 'button';
  tile.className = 'tile';
  tile.title = `tile ${unit}`;
  tile.style.cssText = `grid-area: ${row + 1} / ${column + 1}; aspect-ratio: ${ratio};
    background-size: ${columns * 100}% ${rows * 100}%;
    background-position: ${share(column, columns)}% ${share(row, rows)}%`;
  tile.addEventListener('click', () => {
    if (!props.value.ends.length) mark(unit, []);
    trigger('choose', { unit });
  });
  return tile;
});
group.append(...tiles);
element.replaceChildren(group);

// The chosen tile, or the two ends of a walk.
function mark(chosen, ends) {
  const marked = ends.length ? ends : [chosen];
  tiles.forEach((tile, unit) => {
    const name = ['start', 'end'][ends.indexOf(unit)] ?? '';
    tile.dataset.name = name;
    tile.setAttribute('aria-label', `tile ${unit}${name && `, ${name} of the walk`}`);
    tile.setAttribute('aria-pressed', String(marked.includes(unit)));
  });
  const last = marked.at(-1);
  if (last !== null) stop(last);
}

// The one tile that the Tab key comes to.
function stop(unit) {
  tiles.forEach((tile, other) => { tile.tabIndex = other === unit ? 0 : -1; });
}

function next(unit, down, right) {
  let [row, column] = places[unit];
  for (;;) {
    row += down;
    column += right;
    if (row < 0 || column < 0 || row >= rows || column >= columns) return unit;
    if (unitAt.has(`${row} ${column}`)) return unitAt.get(`${row} ${column}`);
  }
}

group.addEventListener('keydown', (event) => {
  const unit = tiles.indexOf(event.target);
  const moves = {
    ArrowUp: () => next(unit, -1, 0),
    ArrowDown: () => next(unit, 1, 0),
    ArrowLeft: () => next(unit, 0, -1),
    ArrowRight: () => next(unit, 0, 1),
    Home: () => 0,
    End: () => tiles.length - 1,
  };
  if (unit < 0 || !(event.key in moves)) return;
  event.preventDefault();
  const target = moves[event.key]();
  stop(target);
  tiles[target].focus();
});

// A picture is loaded before it is put in place of another, so that nothing flickers.
function draw() {
  const { is_open: isOpen, src, chosen, ends } = props.value;
  group.inert = !isOpen;
  const image = new Image();
  image.onload = () => {
    if (props.value.src === src) group.style.setProperty('--sheet', `url("${src}")`);
  };
  image.src = src;
  mark(chosen, ends);
}

stop(0);
draw();
watch('value', draw);
