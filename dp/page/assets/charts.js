// The tables and plots of the page, drawn by BokehJS. Only the visible lines of a table are drawn.
"use strict";

Bokeh.logger.set_level("warn"); // its notes of a drawn page are no news

const look = {
  css: `:host { --t: #1c1c1c; --g: #fff; --h: #f2f2f2; --l: #ddd; --k: #0b5f86; --s: #dcebf3; font: 14px system-ui, sans-serif; }
    @media (prefers-color-scheme: dark) { :host { --t: #e4e4e4; --g: #16181b; --h: #23262b; --l: #3a3d42; --k: #7cc4e8; --s: #2b4350; } }
    .slick-row, .slick-cell, .grid-canvas, .slick-viewport, .slick-pane { background: var(--g) !important; color: var(--t) !important; }
    .slick-row:hover .slick-cell, .slick-cell.selected { background: var(--s) !important; }
    .slick-header, .slick-header-columns, .slick-header-column { background: var(--h) !important; color: var(--t) !important; }
    .slick-header-column { border-color: var(--l) !important; font-weight: 600; }
    .slick-cell { border-color: var(--l) !important; cursor: pointer; }
    .slick-cell a { color: var(--k); }`,
  dark() { return matchMedia("(prefers-color-scheme: dark)").matches; },
  narrow() { return innerWidth < 700; },
};

const charts = {
  // Draws `data` ({name: [values]}) as a table and returns a function that shows only the lines of given positions.
  // `columns`: [{field, title, width, template?}]; `chosen(k)` is called with the position of a line that is clicked.
  table(target, data, columns, chosen) {
    const length = Object.values(data)[0].length;
    const source = new Bokeh.ColumnDataSource({ data });
    const view = new Bokeh.CDSView({ filter: new Bokeh.AllIndices() });
    const made = columns.map((c) => new Bokeh.Tables.TableColumn({
      field: c.field, title: c.title, width: c.width,
      formatter: c.template ? new Bokeh.Tables.HTMLTemplateFormatter({ template: c.template }) : new Bokeh.Tables.StringFormatter(),
    }));
    const table = new Bokeh.Tables.DataTable({
      source, view, columns: made, sortable: true, reorderable: false, index_position: null, row_height: 28,
      autosize_mode: "none", sizing_mode: "stretch_width", height: Math.min(length, 20) * 28 + 45, stylesheets: [look.css],
    });
    source.selected.change.connect(() => {
      const picked = source.selected.indices;
      if (picked.length) { source.selected.indices = []; chosen(picked[0]); }
    });
    Bokeh.Plotting.show(table, target);
    return (positions) => { view.filter = new Bokeh.IndexFilter({ indices: positions }); };
  },

  // Draws lines with optional bands: [{name, color, dash, x, y, low?, high?}].
  // `top`: the upper end of the vertical axis; null: as the lines need it.
  lines(target, title, xlabel, series, top = 102) {
    const dark = look.dark(), text = dark ? "#e4e4e4" : "#1c1c1c", ground = dark ? "#16181b" : "#ffffff", grid = dark ? "#3a3d42" : "#dddddd";
    const figure = Bokeh.Plotting.figure({
      title, height: 260, sizing_mode: "stretch_width", toolbar_location: null, tools: [],
      y_range: top === null ? new Bokeh.DataRange1d({ start: 0 }) : new Bokeh.Range1d({ start: 0, end: top }), background_fill_color: ground, border_fill_color: ground, outline_line_color: grid,
    });
    for (const s of series) {
      const color = dark ? s.dark : s.color;
      if (s.low) figure.varea({ x: s.x, y1: s.low, y2: s.high, fill_color: color, fill_alpha: 0.18 });
      figure.line(s.x, s.y, { line_color: color, line_width: 2, line_dash: s.dash || "solid", legend_label: s.name });
    }
    for (const axis of [figure.xaxis, figure.yaxis]) {
      axis.axis_label_text_color = text; axis.major_label_text_color = text; axis.axis_line_color = grid;
      axis.major_tick_line_color = grid; axis.minor_tick_line_color = null;
    }
    figure.xaxis.axis_label = xlabel;
    figure.xgrid.grid_line_color = null; figure.ygrid.grid_line_color = grid;
    figure.title.text_color = text;
    figure.legend.background_fill_color = ground; figure.legend.label_text_color = text; figure.legend.border_line_color = grid;
    figure.legend.background_fill_alpha = 0.7;
    figure.legend.location = top === null ? "top_left" : "bottom_left";
    Bokeh.Plotting.show(figure, target);
  },
};
