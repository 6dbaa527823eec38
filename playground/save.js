// Has the browser save a file that the server has made.
watch('value', () => {
  const { src, name } = props.value;
  if (!src) return;
  const link = document.createElement('a');
  link.href = src;
  link.download = name;
  link.click();
});
