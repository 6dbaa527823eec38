// The pictures of this page, the newest first; each is a button that chooses it.
const list = document.createElement('div');
list.setAttribute('role', 'group');
list.setAttribute('aria-label', 'Pictures of this page, the newest first');
element.replaceChildren(list);
const known = new Map();

function make({ key, src, alt, ratio }) {
  const button = document.createElement('button');
  button.type = 'button';
  button.className = 'kept';
  const image = document.createElement('img');
  image.src = src;
  image.alt = alt;
  image.style.aspectRatio = ratio;
  button.append(image);
  button.addEventListener('click', () => trigger('choose', { key }));
  return button;
}

function draw() {
  const { items, chosen, hint, page } = props.value;
  if (page) sessionStorage.setItem('page', page); // the name of its session, which it has again if it is loaded again
  const focused = document.activeElement;
  for (const item of items) if (!known.has(item.key)) known.set(item.key, make(item));
  for (const key of [...known.keys()]) if (!items.some((item) => item.key === key)) known.delete(key);
  list.className = items.length ? 'gallery' : 'gallery empty';
  if (!items.length) {
    list.textContent = hint;
    return;
  }
  list.replaceChildren(...items.map((item) => known.get(item.key)));
  for (const [key, button] of known) button.setAttribute('aria-pressed', String(key === chosen));
  if (list.contains(focused)) focused.focus();
}

draw();
watch('value', draw);
