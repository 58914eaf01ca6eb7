// SPDX-License-Identifier: Apache-2.0
// Charts over time: lines of steps, and bars from a beginning to an end. With a pointer: hover, drag over a range to zoom,
// double click for all. With keys: arrows, + and -, 0. What is under the cursor is also said in words.

const SVG = 'http://www.w3.org/2000/svg';
const LEFT = 74, RIGHT = 10, TOP = 8, BOTTOM = 24, ROW = 17;
const UNITS = {
  'bytes': [1024, ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB']],
  'bits-per-second': [1000, ['bit/s', 'kbit/s', 'Mbit/s', 'Gbit/s', 'Tbit/s']],
  'per-second': [1000, ['/s', 'k/s', 'M/s', 'G/s']],
  'count': [1000, ['', 'k', 'M', 'G']],
  'share': [1000, ['']],
  'nanoseconds': [1000, ['ns', 'µs', 'ms', 's']],
};

// Characters that turn the direction of text or move a cursor are shown as what they are.
const clean = (text) => String(text).replace(/[\u0000-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g,
  (c) => '\\u{' + c.charCodeAt(0).toString(16) + '}');

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  return fill(element, attributes, children);
}

function draw(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null) element.setAttribute(name, value);
  }
  element.append(...children.map((child) => typeof child === 'string' ? clean(child) : child));
  return element;
}

function format(unit, value) {
  const [base, names] = UNITS[unit];
  let step = 0;
  while (Math.abs(value) >= base - 0.5 && step + 1 < names.length) { value /= base; step += 1; }
  const size = Math.abs(value);
  const digits = size === 0 || Number.isInteger(value) ? 0 : size < 1 ? 3 : size < 10 ? 2 : size < 100 ? 1 : 0;
  const gap = names[step].startsWith('/') || names[step].length < 2 && unit === 'count' ? '' : ' ';
  return (value.toFixed(digits) + gap + names[step]).trim();
}

function offset(us) {
  const s = us / 1e6;
  if (us === 0) return '0 s';
  if (Math.abs(s) < 1) return (us / 1e3).toFixed(us % 1000 === 0 ? 0 : 1) + ' ms';
  if (Math.abs(s) < 120) return (Number.isInteger(s) ? s : s.toFixed(1)) + ' s';
  const whole = Math.round(s), min = Math.floor(whole / 60), rest = whole % 60;
  return min < 120 ? min + ' min' + (rest ? ' ' + rest + ' s' : '') : Math.floor(min / 60) + ' h' + (min % 60 ? ' ' + min % 60 + ' min' : '');
}

const clock = (us) => new Date(us / 1000).toISOString().slice(11, 23).replace('.000', '') + ' UTC';

// About as many as wanted, at distances that a person counts in.
function ticks(low, high, wanted, steps) {
  const span = high - low || 1;
  let step = steps ? steps.find((one) => span / one <= wanted) : undefined;
  if (!step) {
    const power = 10 ** Math.floor(Math.log10(span / wanted));
    step = [1, 2, 5, 10].map((one) => one * power).find((one) => span / one <= wanted);
  }
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step / 1e6; at += step) found.push(at);
  return found;
}

const SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400]
  .map((s) => s * 1e6);

// What both kinds share: a range of time that is shown, a cursor, and who changes them.
class Plot {
  constructor(chart, from, to) {
    Object.assign(this, { chart, from, to, low: from, high: to, cursor: null, row: null, range: null });
    this.plot = make('div', { class: 'plot', tabindex: 0, role: 'group', 'aria-roledescription': 'interactive chart',
      'aria-label': clean(chart.title) + '. Arrow keys move, plus and minus zoom, 0 shows all.' });
    this.tip = make('div', { class: 'tip', hidden: '', 'aria-hidden': 'true' });
    this.readout = make('p', { class: 'readout', 'aria-live': 'polite' });
    const button = (text, label, act) => {
      const one = make('button', { type: 'button', 'aria-label': label + ': ' + clean(chart.title) }, text);
      one.addEventListener('click', act);
      return one;
    };
    this.figure = make('figure', { class: 'chart' },
      make('figcaption', {}, make('span', {}, chart.title), make('span', { class: 'tools' },
        button('+', 'Zoom in', () => this.zoom(0.5)), button('−', 'Zoom out', () => this.zoom(2)), button('All', 'Show all', () => this.show(from, to)))),
      this.plot, this.readout);
    this.plot.addEventListener('pointermove', (event) => this.point(event));
    this.plot.addEventListener('pointerleave', () => { if (!this.range) { this.tip.hidden = true; this.cursor = null; this.render(); } });
    this.plot.addEventListener('pointerdown', (event) => { if (event.button === 0) { this.range = [this.at(event), this.at(event)]; } });
    this.plot.addEventListener('dblclick', () => this.show(from, to));
    window.addEventListener('pointerup', () => this.select());
    this.plot.addEventListener('keydown', (event) => this.key(event));
    new ResizeObserver(() => this.render()).observe(this.plot);
  }
  get width() { return Math.max(this.plot.clientWidth, 320); }
  x(us) { return LEFT + (us - this.low) / (this.high - this.low) * (this.width - LEFT - RIGHT); }
  at(event) {
    const share = (event.clientX - this.plot.getBoundingClientRect().left - LEFT) / (this.width - LEFT - RIGHT);
    return this.low + Math.min(Math.max(share, 0), 1) * (this.high - this.low);
  }
  show(low, high) {
    const least = Math.min(this.least, this.to - this.from);
    if (high - low < least) { const middle = (low + high) / 2; low = middle - least / 2; high = middle + least / 2; }
    const length = Math.min(high - low, this.to - this.from);
    this.low = Math.min(Math.max(low, this.from), this.to - length);
    this.high = this.low + length;
    this.render();
  }
  zoom(factor) {
    const middle = this.cursor ?? (this.low + this.high) / 2, half = (this.high - this.low) * factor / 2;
    this.show(middle - half, middle + half);
  }
  select() {
    if (!this.range) return;
    const [a, b] = [Math.min(...this.range), Math.max(...this.range)];
    this.range = null;
    if (this.x(b) - this.x(a) > 6) this.show(a, b); else this.render();
  }
  point(event) {
    const at = this.at(event);
    if (this.range) this.range[1] = at;
    const box = this.plot.getBoundingClientRect();
    this.move(at, event.clientY - box.top);
    this.tip.textContent = this.words('\n');
    this.tip.hidden = this.tip.textContent === '';
    const x = event.clientX - box.left, wide = this.tip.offsetWidth;
    this.tip.style.left = (x + wide + 24 > this.width ? Math.max(x - wide - 12, 0) : x + 14) + 'px';
    this.tip.style.top = Math.max(event.clientY - box.top - 10, 0) + 'px';
  }
  key(event) {
    const step = this.least, at = this.cursor ?? this.low;
    const keys = {
      ArrowRight: () => this.move(Math.min(at + step, this.to), null), ArrowLeft: () => this.move(Math.max(at - step, this.from), null),
      ArrowDown: () => this.next(1), ArrowUp: () => this.next(-1),
      Home: () => this.move(this.from, null), End: () => this.move(this.to, null),
      '+': () => this.zoom(0.5), '=': () => this.zoom(0.5), '-': () => this.zoom(2), '0': () => this.show(this.from, this.to),
      Escape: () => this.show(this.from, this.to),
    };
    const act = event.ctrlKey || event.metaKey || event.altKey ? null : keys[event.key];
    if (!act) return;
    event.preventDefault();
    act();
    if (this.cursor !== null && (this.cursor < this.low || this.cursor > this.high)) {
      const half = (this.high - this.low) / 2;
      this.show(this.cursor - half, this.cursor + half);
    }
    this.readout.textContent = this.words('; ');
  }
  next() {}
  axis(svg, height) {
    for (const at of ticks(this.low - this.from, this.high - this.from, Math.max(Math.floor(this.width / 110), 2), SECONDS)) {
      const x = this.x(at + this.from);
      svg.append(draw('line', { class: 'grid', x1: x, x2: x, y1: TOP, y2: height - BOTTOM }),
        draw('text', { x, y: height - 8, 'text-anchor': x > this.width - 40 ? 'end' : 'middle' }, offset(at)));
    }
  }
  marks(svg, height) {
    if (this.cursor !== null) {
      const x = this.x(this.cursor);
      svg.append(draw('line', { class: 'cursor', x1: x, x2: x, y1: TOP, y2: height - BOTTOM }));
    }
    if (this.range) {
      const [a, b] = [Math.min(...this.range), Math.max(...this.range)];
      svg.append(draw('rect', { class: 'range', x: this.x(a), y: TOP, width: this.x(b) - this.x(a), height: height - TOP - BOTTOM }));
    }
  }
}

// Lines: each value holds for its whole interval.
class Lines extends Plot {
  constructor(chart) {
    const bins = Math.max(...chart.series.map((one) => one.values.length), 1);
    super(chart, chart.from_us, chart.from_us + bins * chart.step_us);
    Object.assign(this, { bins, hidden: new Set() });
    const legend = make('ul', { class: 'legend', 'aria-label': 'Series of ' + clean(chart.title) });
    chart.series.forEach((one, i) => {
      const button = make('button', { type: 'button', 'aria-pressed': 'true' },
        draw('svg', { viewBox: '0 0 22 10', 'aria-hidden': 'true' }, draw('path', { d: 'M0 5H22', ...this.stroke(i) })), one.name);
      button.addEventListener('click', () => {
        if (!this.hidden.delete(i)) this.hidden.add(i);
        button.setAttribute('aria-pressed', String(!this.hidden.has(i)));
        this.render();
      });
      legend.append(make('li', {}, button));
    });
    this.figure.append(legend, this.values());
    this.render();
  }
  get least() { return this.chart.step_us; }
  stroke(i) {
    return { stroke: `var(--c${i % 9})`, 'stroke-width': 2, fill: 'none', 'stroke-dasharray': ['', '6 3', '2 2'][Math.floor(i / 3) % 3] || null };
  }
  move(at) { this.cursor = Math.min(Math.max(at, this.from), this.to); this.render(); }
  bin(at) { return Math.min(Math.max(Math.floor((at - this.from) / this.chart.step_us), 0), this.bins - 1); }
  words(between) {
    if (this.cursor === null) return '';
    const bin = this.bin(this.cursor), from = bin * this.chart.step_us;
    const shown = this.chart.series.map((one, i) => [one, i]).filter(([, i]) => !this.hidden.has(i));
    shown.sort(([a], [b]) => (b.values[bin] ?? -1) - (a.values[bin] ?? -1));
    const lines = shown.map(([one]) => clean(one.name) + ': ' + (one.values[bin] == null ? 'not known' : format(this.chart.unit, one.values[bin])));
    return [offset(from) + ' to ' + offset(from + this.chart.step_us) + ' (' + clock(this.from + from) + ')', ...lines].join(between);
  }
  values() {
    const details = make('details', {}, make('summary', {}, 'Values as a table'));
    details.addEventListener('toggle', () => {
      if (!details.open || details.childElementCount > 1) return;
      const { series, unit, step_us } = this.chart;
      const head = make('tr', {}, make('th', { scope: 'col' }, 'from'), ...series.map((one) => make('th', { scope: 'col', class: 'number' }, one.name)));
      const rows = Array.from({ length: this.bins }, (_, bin) => make('tr', {}, make('th', { scope: 'row' }, offset(bin * step_us)),
        ...series.map((one) => make('td', { class: 'number' }, one.values[bin] == null ? '–' : format(unit, one.values[bin])))));
      details.append(make('div', { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': 'Values of ' + clean(this.chart.title) },
        make('table', {}, make('caption', {}, this.chart.title), make('thead', {}, head), make('tbody', {}, ...rows))));
    });
    return details;
  }
  render() {
    const height = 220, first = this.bin(this.low), last = this.bin(this.high - 1);
    const svg = draw('svg', { viewBox: `0 0 ${this.width} ${height}`, height, 'aria-hidden': 'true', focusable: 'false' });
    let top = 0;
    this.chart.series.forEach((one, i) => {
      if (!this.hidden.has(i)) for (let bin = first; bin <= last; bin += 1) top = Math.max(top, one.values[bin] ?? 0);
    });
    const base = UNITS[this.chart.unit][0];
    const scale = base ** Math.floor(Math.log(top || 1) / Math.log(base));
    const marks = ticks(0, (top || 1) / scale, 4).map((at) => at * scale);
    const high = Math.max(top * 1.05, marks.at(-1) || 1);
    const y = (value) => height - BOTTOM - value / high * (height - TOP - BOTTOM);
    for (const at of marks) {
      svg.append(draw('line', { class: 'grid', x1: LEFT, x2: this.width - RIGHT, y1: y(at), y2: y(at) }),
        draw('text', { x: LEFT - 6, y: y(at) + 4, 'text-anchor': 'end' }, format(this.chart.unit, at)));
    }
    this.axis(svg, height);
    this.chart.series.forEach((one, i) => {
      if (this.hidden.has(i)) return;
      let path = '', open = false;
      for (let bin = first; bin <= last; bin += 1) {
        const value = one.values[bin];
        if (value == null) { open = false; continue; }
        const left = this.x(Math.max(this.from + bin * this.chart.step_us, this.low));
        const right = this.x(Math.min(this.from + (bin + 1) * this.chart.step_us, this.high));
        path += (open ? 'V' + y(value).toFixed(1) : `M${left.toFixed(1)} ${y(value).toFixed(1)}`) + 'H' + right.toFixed(1);
        open = true;
      }
      svg.append(draw('path', { d: path, ...this.stroke(i) }));
    });
    this.marks(svg, height);
    this.plot.replaceChildren(svg, this.tip);
  }
}

// Bars from a beginning to an end, one below the other.
class Timeline extends Plot {
  static number = 0;
  constructor(chart) {
    super(chart, chart.from_us, Math.max(chart.to_us, chart.from_us + 1));
    this.plot.setAttribute('aria-label', clean(chart.title) + '. Up and down go from bar to bar, plus and minus zoom, 0 shows all.');
    this.figure.append(make('p', { class: 'readout' },
      'Blue bars ended, hatched ones ended badly, green ones were alive at the end; the end of grey ones may have been missed.'));
    this.hatch = 'hatch' + Timeline.number++;
    this.render();
  }
  get least() { return (this.to - this.from) / 1000; }
  move(at, y) {
    this.cursor = at;
    if (y !== null) {
      const row = Math.floor((y - TOP) / ROW);
      this.row = row >= 0 && row < this.chart.spans.length ? row : null;
    }
    this.render();
  }
  next(by) {
    this.row = Math.min(Math.max((this.row ?? (by > 0 ? -1 : 1)) + by, 0), this.chart.spans.length - 1);
    this.render();
  }
  words(between) {
    const span = this.chart.spans[this.row];
    if (!span) return '';
    const began = (span.earlier ? 'before ' : '') + offset(span.from_us - this.from);
    return [clean(span.name), clean(span.detail), 'from ' + began + (span.open ? ', goes on' : (span.unseen ? ', seen last at ' : ' to ') + offset(span.to_us - this.from))].join(between);
  }
  render() {
    const height = TOP + BOTTOM + ROW * Math.max(this.chart.spans.length, 1);
    const svg = draw('svg', { viewBox: `0 0 ${this.width} ${height}`, height, 'aria-hidden': 'true', focusable: 'false' });
    svg.append(draw('defs', {}, draw('pattern', { id: this.hatch, width: 6, height: 6, patternUnits: 'userSpaceOnUse', patternTransform: 'rotate(45)' },
      draw('rect', { width: 6, height: 6, fill: 'var(--panel)' }), draw('rect', { width: 3, height: 6, fill: 'var(--crit)' }))));
    this.axis(svg, height);
    this.chart.spans.forEach((span, i) => {
      const y = TOP + i * ROW, left = Math.max(this.x(span.from_us), LEFT), right = Math.min(this.x(span.to_us), this.width - RIGHT);
      if (i === this.row) svg.append(draw('rect', { class: 'range', x: 0, y, width: this.width, height: ROW }));
      const name = clean(span.name);
      svg.append(draw('text', { x: LEFT - 6, y: y + 12, 'text-anchor': 'end' }, name.length > 11 ? name.slice(0, 10) + '…' : name));
      if (right < LEFT || left > this.width - RIGHT) return;
      const color = span.failed ? `url(#${this.hatch})` : span.open ? 'var(--c2)' : span.unseen ? 'var(--c8)' : 'var(--c0)';
      svg.append(draw('rect', { x: left, y: y + 3, width: Math.max(right - left, 2), height: ROW - 6, fill: color, stroke: span.failed ? 'var(--crit)' : 'none', rx: 2 }));
    });
    this.marks(svg, height);
    this.plot.replaceChildren(svg, this.tip);
  }
}

function bars(chart) {
  const most = Math.max(...chart.bars.map(([, value]) => value), 1);
  const list = make('ul', { class: 'bars' });
  for (const [name, value] of chart.bars) {
    const bar = make('span', { class: 'bar' });
    bar.style.width = value / most * 100 + '%';
    list.append(make('li', {}, make('span', {}, name), make('span', { 'aria-hidden': 'true' }, bar),
      make('span', { class: 'value' }, value.toLocaleString('en-US'))));
  }
  return make('figure', { class: 'chart' }, make('figcaption', {}, chart.title), list);
}

const chart = (one) => one.kind === 'series' ? new Lines(one).figure : one.kind === 'timeline' ? new Timeline(one).figure : bars(one);
