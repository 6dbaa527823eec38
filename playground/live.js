// The pictures of the last request, as tiles of one file. Once they are kept, each is a button that chooses it.
const group = document.createElement('div');
group.setAttribute('role', 'group');
element.replaceChildren(group);
let [layout, request] = ['', null];

function build({ number, columns, ratio, hint }) {
  layout = `${number} ${columns}`;
  group.className = number ? 'live' : 'live empty';
  if (!number) {
    group.textContent = hint;
    return;
  }
  const rows = Math.ceil(number / columns);
  const share = (index, all) => (all > 1 ? (100 * index) / (all - 1) : 0);
  group.style.setProperty('--columns', columns);
  group.replaceChildren(...Array.from({ length: number }, (_, index) => {
    const tile = document.createElement('button');
    tile.type = 'button';
    tile.className = 'tile';
    tile.style.cssText = `aspect-ratio: ${ratio}; background-size: ${columns * 100}% ${rows * 100}%;
      background-position: ${share(index % columns, columns)}% ${share(Math.floor(index / columns), rows)}%`;
    tile.addEventListener('click', () => trigger('choose', { key: props.value.keys[index] }));
    return tile;
  }));
}

function show(value) {
  if (layout !== `${value.number} ${value.columns}`) build(value);
  group.setAttribute('aria-label', value.number ? `Pictures, ${value.name}` : 'Pictures');
  if (!value.number) return;
  group.style.setProperty('--sheet', `url("${value.src}")`);
  [...group.children].forEach((tile, index) => {
    tile.disabled = !value.keys.length;
    tile.setAttribute('aria-label', `picture ${index}, ${value.name}`);
  });
  // Where the page has one column, as on a phone, the pictures of a new request may be out of sight.
  if (value.request !== request) element.closest('.card').scrollIntoView({ block: 'nearest' });
  request = value.request;
}

// A file is loaded before it is shown. By then there may be a newer value, of the same file or of another one.
function draw() {
  const { src } = props.value;
  if (!src) return show(props.value);
  const image = new Image();
  image.onload = () => {
    if (props.value.src === src) show(props.value);
  };
  image.src = src;
}

draw();
watch('value', draw);
