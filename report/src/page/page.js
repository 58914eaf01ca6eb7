// SPDX-License-Identifier: Apache-2.0
// Draws the sections. Names in the data are others' to choose: they become text, never markup.

const LEVELS = { ok: 'Fine', info: 'Info', warn: 'Warning', crit: 'Critical' };

// What stands between backticks is for a terminal.
const prose = (text) => clean(text).split('`').map((part, i) => i % 2 ? make('code', {}, part) : part);

function cell(one, head, number) {
  const name = head ? 'th' : 'td';
  const names = [number ? 'number' : '', one.level ?? ''].join(' ').trim();
  return make(name, { class: names || null, scope: head ? 'row' : null }, one.text);
}

// Sorted by what a click on a column's name says; names as text, numbers as numbers, what is not known last.
function table(data, of) {
  const body = make('tbody');
  const number = data.columns.map((_, i) => data.rows.some((row) => row[i].value !== undefined));
  const rows = data.rows.map((row) => [row, make('tr', {}, ...row.map((one, i) => cell(one, i === 0, number[i])))]);
  const heads = data.columns.map((name, i) => {
    const button = make('button', { type: 'button' }, name);
    const head = make('th', { scope: 'col', class: number[i] ? 'number' : null }, button);
    button.addEventListener('click', () => {
      const down = head.getAttribute('aria-sort') ? head.getAttribute('aria-sort') === 'ascending' : number[i];
      heads.forEach((one) => one.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
      const sorted = rows.toSorted(([a], [b]) => {
        const [x, y] = number[i] ? [a[i].value, b[i].value] : [a[i].text, b[i].text];
        if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
        return (typeof x === 'string' ? x.localeCompare(y) : x - y) * (down ? -1 : 1);
      });
      body.replaceChildren(...sorted.map(([, row]) => row));
    });
    return head;
  });
  body.append(...rows.map(([, row]) => row));
  const all = make('table', {}, make('caption', {}, data.title), make('thead', {}, make('tr', {}, ...heads)), body);
  const shown = [make('div', { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': clean(of + ': ' + data.title) }, all)];
  if (data.note) shown.push(make('p', { class: 'note' }, data.note));
  return shown;
}

function section(view) {
  const id = view.id + '-title';
  const shown = make('section', { id: view.id, 'aria-labelledby': id }, make('h2', { id }, view.title));
  if (view.absent) {
    shown.append(make('p', { class: 'absent' }, 'Nothing to show: ' + view.absent + '.'));
    return shown;
  }
  if (view.figures.length) {
    shown.append(make('dl', { class: 'figures' }, ...view.figures.map((one) =>
      make('div', {}, make('dt', {}, one.name), make('dd', { class: one.cell.level ?? null }, one.cell.text)))));
  }
  if (view.advice.length) {
    shown.append(make('ul', { class: 'advice' }, ...view.advice.map((one) => make('li', { class: one.level },
      make('p', { class: 'cause' }, make('span', { class: 'level ' + one.level }, LEVELS[one.level]), one.cause),
      make('p', { class: 'evidence' }, one.evidence), make('p', {}, ...prose(one.next))))));
  }
  shown.append(...view.charts.map(chart), ...view.tables.filter((one) => one.rows.length).flatMap((one) => table(one, view.title)));
  if (view.notes.length) shown.append(make('ul', { class: 'notes' }, ...view.notes.map((one) => make('li', {}, ...prose(one)))));
  return shown;
}

const views = JSON.parse(document.getElementById('data').textContent);
document.getElementById('sections').append(...views.map((view) =>
  make('li', {}, make('a', { href: '#' + view.id, class: view.absent ? 'none' : null }, view.title))));
document.getElementById('main').append(...views.map(section));
document.getElementById('theme').addEventListener('change', (event) => {
  document.documentElement.dataset.theme = event.target.value;
});
