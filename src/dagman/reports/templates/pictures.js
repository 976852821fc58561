// Pictures that can be enlarged, and crops of scans that can be stepped through. Nothing is loaded; without this script the
// still pictures remain. A volume is X Y Z in RAS+ order and is shown as a radiologist reads it.
(() => {
  'use strict';
  const PLANES = [
    { name: 'axial', normal: 2, across: 0, up: 1, letters: 'RLAP' },
    { name: 'coronal', normal: 1, across: 0, up: 2, letters: 'RLSI' },
    { name: 'sagittal', normal: 0, across: 1, up: 2, letters: 'APSI' },
  ];
  const BLUE = [26, 128, 242], ORANGE = [255, 128, 13], OPACITY = 0.75;
  const element = (name, attributes = {}, ...children) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };

  async function readGrid(source, shape) {
    const image = new Image();
    image.src = source;
    await image.decode();
    const canvas = element('canvas', { width: image.naturalWidth, height: image.naturalHeight });
    const context = canvas.getContext('2d', { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    const rgba = context.getImageData(0, 0, canvas.width, canvas.height).data;
    const codes = new Uint8Array(rgba.length / 4);
    for (let i = 0; i < codes.length; i++) codes[i] = rgba[4 * i];
    return { codes, shape };
  }

  // Row 0 on top, column 0 on the left: both axes run against the index.
  function takeSlice(grid, plane, share) {
    const { codes, shape } = grid, steps = [1, shape[0], shape[0] * shape[1]];
    const width = shape[plane.across], height = shape[plane.up];
    const at = Math.min(Math.max(Math.floor(share * shape[plane.normal]), 0), shape[plane.normal] - 1);
    const out = new Uint8Array(width * height);
    for (let row = 0, i = 0; row < height; row++)
      for (let column = 0; column < width; column++, i++)
        out[i] = codes[at * steps[plane.normal] + (height - 1 - row) * steps[plane.up] + (width - 1 - column) * steps[plane.across]];
    return { out, width, height };
  }

  function paint(slice, color) {
    const canvas = element('canvas', { width: slice.width, height: slice.height });
    const context = canvas.getContext('2d'), image = context.createImageData(slice.width, slice.height);
    slice.out.forEach((code, i) => image.data.set(color(code), 4 * i));
    context.putImageData(image, 0, 0);
    return canvas;
  }

  function drawOutline(context, slice, code, width, height) {
    const { out, width: columns, height: rows } = slice, x = width / columns, y = height / rows;
    const inside = (row, column) => row >= 0 && column >= 0 && row < rows && column < columns && out[row * columns + column] === code;
    context.beginPath();
    for (let row = 0; row <= rows; row++)
      for (let column = 0; column <= columns; column++) {
        if (inside(row, column) !== inside(row - 1, column)) { context.moveTo(column * x, row * y); context.lineTo((column + 1) * x, row * y); }
        if (inside(row, column) !== inside(row, column - 1)) { context.moveTo(column * x, row * y); context.lineTo(column * x, (row + 1) * y); }
      }
    context.stroke();
  }

  function hatchBeyond(context, volume, plane, share, width, height) {
    if (!volume.within) return;
    const at = share * volume.shape[plane.normal], [first, last] = volume.within[plane.normal];
    let [left, right, top, bottom] = [0, 0, 0, 0];
    if (at >= first && at <= last) {
      const across = volume.within[plane.across], up = volume.within[plane.up];
      left = width * (1 - across[1] / volume.shape[plane.across]); right = width * (1 - across[0] / volume.shape[plane.across]);
      top = height * (1 - up[1] / volume.shape[plane.up]); bottom = height * (1 - up[0] / volume.shape[plane.up]);
    }
    context.save();
    context.beginPath();
    context.rect(0, 0, width, height);
    if (right > left) context.rect(left, top, right - left, bottom - top);
    context.clip('evenodd');
    context.fillStyle = 'rgba(0, 0, 0, .45)';
    context.fillRect(0, 0, width, height);
    context.strokeStyle = 'rgba(255, 255, 255, .55)';
    context.lineWidth = 1;
    context.beginPath();
    for (let x = -height; x < width; x += 9) { context.moveTo(x, height); context.lineTo(x + height, 0); }
    context.stroke();
    context.restore();
  }

  function drawScaleBar(context, volume, plane, width, height) {
    const extent = volume.shape[plane.across] * volume.spacing[plane.across];
    const length = [100, 50, 20, 10, 5].find(mm => mm <= extent / 3) || 2;
    context.fillStyle = context.strokeStyle = '#fff';
    context.lineWidth = 2;
    context.beginPath();
    context.moveTo(8, height - 8); context.lineTo(8 + length / extent * width, height - 8);
    context.stroke();
    write(context, length + ' mm', 8, height - 12, 'left', 'bottom');
  }

  function write(context, text, x, y, align, baseline) {
    context.font = '600 12px system-ui, sans-serif';
    context.textAlign = align; context.textBaseline = baseline;
    context.lineWidth = 3; context.strokeStyle = '#000'; context.fillStyle = '#fff';
    context.strokeText(text, x, y); context.fillText(text, x, y);
  }

  // One slice into a canvas; `place` is the voxel, `shown` which overlays.
  function draw(canvas, volume, plane, place, state) {
    const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
    if (!width || !height) return;
    canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
    const context = canvas.getContext('2d'), share = (place[plane.normal] + 0.5) / volume.shape[plane.normal];
    context.scale(ratio, ratio);
    context.imageSmoothingEnabled = true; context.imageSmoothingQuality = 'high';
    const [low, high] = state.window, greys = volume.table.map(value => Math.max(0, Math.min(255, 255 * (value - low) / (high - low))));
    const grey = paint(takeSlice(volume.grid, plane, share), code => [greys[code], greys[code], greys[code], 255]);
    context.drawImage(grey, 0, 0, width, height);
    if (volume.heat && state.attention) {
      const heat = paint(takeSlice(volume.heat, plane, share), code => {
        const away = (code - 127) / 127;
        return [...(away < 0 ? BLUE : ORANGE), 255 * OPACITY * Math.abs(away)];
      });
      context.imageSmoothingEnabled = false;
      context.drawImage(heat, 0, 0, width, height);
    }
    for (const layer of state.outlines ? volume.layers : []) {
      const slice = takeSlice(layer.grid, plane, share);
      if (layer.fill) {
        context.globalAlpha = layer.fill; context.imageSmoothingEnabled = false;
        context.drawImage(paint(slice, code => code ? [...rgb(layer.colors[code - 1]), 255] : [0, 0, 0, 0]), 0, 0, width, height);
        context.globalAlpha = 1;
      }
      context.setLineDash(layer.dashed ? [5, 3] : []);
      context.lineWidth = 1.5;
      for (const code of new Set(slice.out)) {
        if (!code) continue;
        context.strokeStyle = layer.colors[code - 1];
        drawOutline(context, slice, code, width, height);
      }
      context.setLineDash([]);
    }
    hatchBeyond(context, volume, plane, share, width, height);
    const [left, right, top, bottom] = plane.letters;
    write(context, left, 5, height / 2, 'left', 'middle'); write(context, right, width - 5, height / 2, 'right', 'middle');
    write(context, top, width / 2, 4, 'center', 'top'); write(context, bottom, width / 2, height - 4, 'center', 'bottom');
    drawScaleBar(context, volume, plane, width, height);
  }

  const rgb = color => [1, 3, 5].map(i => parseInt(color.slice(i, i + 2), 16));

  const size = (volume, axis) => volume.shape[axis] * volume.spacing[axis];

  // The volumes of one section share a window, so that they compare.
  async function openVolume(figure) {
    const volume = JSON.parse(figure.querySelector('script').textContent);
    volume.grid = await readGrid(volume.levels, volume.shape);
    for (const layer of volume.layers) layer.grid = await readGrid(layer.codes, layer.shape);
    if (volume.attention) volume.heat = await readGrid(volume.attention.values, volume.attention.shape);
    const state = { window: volume.window, attention: figure.dataset.attention === 'on', outlines: true };
    const rows = volume.heat ? [false, true] : [false];
    const panels = element('div', { class: 'panels' });
    const canvases = rows.flatMap(attention => {
      const row = element('div', { class: 'planes' });
      panels.append(row);
      return PLANES.map(plane => {
        const button = element('button', { type: 'button', 'aria-label': `Enlarge the ${plane.name} slice of ${figure.dataset.title}` });
        const canvas = element('canvas');
        button.style.flexGrow = size(volume, plane.across);
        button.style.aspectRatio = size(volume, plane.across) + ' / ' + size(volume, plane.up);
        button.append(canvas);
        button.addEventListener('click', () => viewer.open(figure.volume, plane, attention));
        row.append(button);
        return { canvas, plane, attention };
      });
    });
    figure.querySelector('img').hidden = true;
    figure.querySelector('img').after(panels, ...describe(volume));
    const redraw = () => canvases.forEach(({ canvas, plane, attention }) =>
      draw(canvas, volume, plane, volume.point, { ...state, attention, outlines: !attention && state.outlines }));
    new ResizeObserver(redraw).observe(panels);
    window.addEventListener('beforeprint', redraw);
    figure.volume = { volume, state, redraw, title: figure.dataset.title, caption: figure.querySelector('figcaption') };
    redraw();
  }

  // What the outlines and colours are.
  function describe(volume) {
    const key = element('p', { class: 'key' }), told = new Set();
    for (const layer of volume.layers)
      layer.names.forEach((name, i) => {
        if (!name || told.has(name)) return;
        told.add(name);
        key.append(element('span', {}, element('i', { style: `border-color: ${layer.colors[i]}; border-style: ${layer.dashed ? 'dashed' : 'solid'}` }), name));
      });
    if (volume.attention) {
      const { reach } = volume.attention, digits = reach >= 0.02 ? 2 : 4;
      key.append(element('span', {}, Math.max(0, 1 - reach).toFixed(digits), element('i', { class: 'heat' }), (1 + reach).toFixed(digits) + ' attention, times uniform'));
    }
    if (volume.within) key.append(element('span', {}, element('i', { class: 'hatched' }), 'beyond the scan: mirrored'));
    return key.children.length ? [key] : [];
  }

  const viewer = {
    build() {
      this.canvas = element('canvas'); this.image = element('img', { alt: '' });
      this.words = element('p', { class: 'words' }); this.bar = element('div', { class: 'bar', role: 'toolbar' });
      const close = element('button', { type: 'button', 'aria-label': 'Close' }, '×');
      close.addEventListener('click', () => this.dialog.close());
      this.dialog = element('dialog', { class: 'viewer' }, element('div', { class: 'top' }, this.bar, close), this.canvas, this.image, this.words);
      document.body.append(this.dialog);
      this.dialog.addEventListener('keydown', event => this.press(event));
      this.dialog.addEventListener('click', event => { if (event.target === this.dialog) this.dialog.close(); });
      this.canvas.addEventListener('wheel', event => { event.preventDefault(); this.step(event.deltaY < 0 ? 1 : -1); }, { passive: false });
      window.addEventListener('resize', () => this.show());
    },
    open(shown, plane, attention) {
      if (!this.dialog) this.build();
      Object.assign(this, { shown, plane, picture: null, place: [...shown.volume.point], state: { ...shown.state, attention, outlines: !attention } });
      this.start();
    },
    openPicture(image) {
      if (!this.dialog) this.build();
      Object.assign(this, { shown: null, picture: image });
      this.start();
    },
    start() { if (!this.dialog.open) this.dialog.showModal(); this.show(); },
    press(event) {
      const by = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 5, PageDown: -5 }[event.key];
      if (by) { event.preventDefault(); this.step(by); }
      if (!this.shown) return;
      const number = '123'.indexOf(event.key), windows = Object.values(this.shown.volume.windows);
      if (number >= 0 && event.key && windows[number]) this.change({ window: windows[number] });
      const plane = PLANES.find(one => one.name[0] === event.key);
      if (plane) { this.plane = plane; this.show(); }
      if (event.key === 'o') this.change({ outlines: !this.state.outlines });
      if (event.key === 't' && this.shown.volume.heat) this.change({ attention: !this.state.attention });
    },
    change(values) { Object.assign(this.state, values); this.show(); },
    step(by) {
      if (this.picture) {
        const all = [...document.querySelectorAll('main figure:not(.volume) img')].filter(one => one.offsetParent);
        this.picture = all[(all.indexOf(this.picture) + Math.sign(by) + all.length) % all.length];
      } else {
        const axis = this.plane.normal, last = this.shown.volume.shape[axis] - 1;
        this.place[axis] = Math.min(Math.max(this.place[axis] + by, 0), last);
      }
      this.show();
    },
    show() {
      if (!this.dialog.open) return;
      this.canvas.hidden = !this.shown; this.image.hidden = !this.picture;
      this.bar.replaceChildren();
      if (this.picture) {
        this.image.src = this.picture.src; this.image.alt = this.picture.alt;
        this.image.className = this.picture.className; this.image.closest('dialog').dataset.window = this.picture.closest('section').dataset.window || '';
        this.button('‹ previous', () => this.step(-1)); this.button('next ›', () => this.step(1));
        this.words.textContent = (this.picture.closest('figure').querySelector('figcaption') || {}).textContent || '';
        return;
      }
      const { volume, title } = this.shown, plane = this.plane, axis = plane.normal;
      for (const one of PLANES) this.button(one.name, () => { this.plane = one; this.show(); }, one === plane);
      for (const [name, ends] of Object.entries(volume.windows)) this.button(name, () => this.change({ window: ends }), ends + '' === this.state.window + '');
      if (volume.layers.length) this.button('outlines', () => this.change({ outlines: !this.state.outlines }), this.state.outlines);
      if (volume.heat) this.button('attention', () => this.change({ attention: !this.state.attention }), this.state.attention);
      this.button('‹', () => this.step(-1)); this.button('›', () => this.step(1));
      const wide = size(volume, plane.across), tall = size(volume, plane.up);
      const scale = Math.min((window.innerWidth - 60) / wide, (window.innerHeight - 170) / tall);
      this.canvas.style.width = wide * scale + 'px'; this.canvas.style.height = tall * scale + 'px';
      draw(this.canvas, volume, plane, this.place, this.state);
      const at = ((this.place[axis] - (volume.shape[axis] - 1) / 2) * volume.spacing[axis]).toFixed(0);
      this.words.textContent = `${title}: ${plane.name}, slice ${this.place[axis] + 1} of ${volume.shape[axis]}, ${at} mm from the middle of the crop. `
        + 'Arrow keys or the wheel step through slices; a, c, s choose the plane; Esc closes.';
    },
    button(text, act, pressed) {
      const made = element('button', { type: 'button' }, text);
      if (pressed !== undefined) made.setAttribute('aria-pressed', pressed);
      made.addEventListener('click', act);
      this.bar.append(made);
    },
  };

  function addWindows(section) {
    const volumes = [...section.querySelectorAll('figure.volume')].filter(one => one.volume && Object.keys(one.volume.volume.windows).length);
    const stills = section.querySelectorAll('img.windowed');
    if (!volumes.length && !stills.length) return;
    const windows = volumes.length ? volumes[0].volume.volume.windows : { all: 0, lung: 0, 'soft tissue': 0, bone: 0 };
    const bar = element('div', { class: 'bar', role: 'toolbar', 'aria-label': 'Window' }, element('span', {}, 'Window'));
    for (const [name, ends] of Object.entries(windows)) {
      const button = element('button', { type: 'button', 'aria-pressed': 'false' }, name);
      if (!volumes.length && (section.dataset.window || 'all') === name || volumes.length && volumes.every(one => one.volume.state.window + '' === ends + '')) button.setAttribute('aria-pressed', 'true');
      button.addEventListener('click', () => {
        for (const other of bar.querySelectorAll('button')) other.setAttribute('aria-pressed', String(other === button));
        section.dataset.window = name;
        for (const one of volumes) { one.volume.state.window = ends; one.volume.redraw(); }
      });
      bar.append(button);
    }
    section.querySelector('h2').after(bar);
  }

  // Rows of tables and small pictures that hold all the words typed.
  function addFilter() {
    if (!document.querySelector('[data-filtered]')) return;
    const input = element('input', { type: 'search', placeholder: 'words, such as refused or a name' }), count = element('span');
    const items = [...document.querySelectorAll('[data-filtered] tbody tr, .grid.narrow figure')];
    const rows = items.filter(item => item.matches('tr'));
    const show = () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const item of items) item.hidden = !words.every(word => item.textContent.toLowerCase().includes(word));
      count.textContent = words.length ? `${rows.filter(row => !row.hidden).length} of ${rows.length}` : '';
    };
    input.addEventListener('input', show);
    document.querySelector('main').prepend(element('p', { class: 'filter' }, element('label', {}, 'Show only ', input), count));
  }

  addFilter();
  for (const image of document.querySelectorAll('main figure:not(.volume) > img')) {
    image.tabIndex = 0;
    image.setAttribute('role', 'button');
    image.classList.add('large');
    image.addEventListener('click', () => viewer.openPicture(image));
    image.addEventListener('keydown', event => { if (event.key === 'Enter') viewer.openPicture(image); });
  }
  const opened = [...document.querySelectorAll('figure.volume')].map(openVolume);
  Promise.all(opened).then(() => {
    document.querySelectorAll('main section').forEach(addWindows);
    document.documentElement.dataset.ready = 'yes';
  });
})();
