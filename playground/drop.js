// Where a picture is given: dropped, chosen, or pasted anywhere on the page. The file itself goes to the server.
element.innerHTML = `
  <label class="drop">
    <input type="file" accept="image/*" class="unseen">
    <img alt="" hidden>
    <span class="say"></span>
  </label>`;
const [area, input, image, say] = ['.drop', 'input', 'img', '.say'].map((name) => element.querySelector(name));

async function give(file) {
  if (!file) return;
  say.textContent = `reading ${file.name} …`;
  let path = '';
  try {
    if (file.size <= props.most) ({ path } = await upload(file));
  } catch {
    path = '';
  }
  trigger('given', { path, name: file.name, bytes: file.size });
}

input.addEventListener('change', () => {
  give(input.files[0]);
  input.value = '';
});
for (const name of ['dragenter', 'dragover']) {
  area.addEventListener(name, (event) => {
    event.preventDefault();
    area.classList.add('over');
  });
}
for (const name of ['dragleave', 'drop']) area.addEventListener(name, () => area.classList.remove('over'));
area.addEventListener('drop', (event) => {
  event.preventDefault();
  give(event.dataTransfer.files[0]);
});
document.addEventListener('paste', (event) => {
  if (element.isConnected && event.clipboardData.files.length) give(event.clipboardData.files[0]);
});

function draw() {
  const { src, name, say: text } = props.value;
  image.hidden = !src;
  if (src) image.src = src;
  image.alt = src ? `${name}, as the model gets it` : '';
  say.textContent = text;
}

draw();
watch('value', draw);
