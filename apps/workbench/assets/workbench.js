/* The clientside half of the workbench: theme, current link, and the keyboard layer on grids. */
(function () {
  "use strict";

  const html = document.documentElement;
  const KEY = "mantine-color-scheme-value";

  function scheme() {
    let kept = null;
    try { kept = window.localStorage.getItem(KEY); } catch (e) { kept = null; }
    if (kept === "light" || kept === "dark") return kept;
    return window.matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  }
  html.setAttribute("data-mantine-color-scheme", scheme());

  /* The server paints figures for the theme it is told: by a cookie at first, by a store after. */
  function tellScheme() {
    const now = html.getAttribute("data-mantine-color-scheme") === "dark" ? "dark" : "light";
    document.cookie = "interp_scheme=" + now + ";path=/;max-age=31536000;samesite=strict";
    const dash = window.dash_clientside;
    if (dash && dash.set_props && document.getElementById("here") && tellScheme.last !== now) {
      tellScheme.last = now;
      dash.set_props("scheme", { data: now });
    }
  }
  new MutationObserver(tellScheme).observe(html, {
    attributes: true, attributeFilter: ["data-mantine-color-scheme"],
  });

  function say(text) {
    const live = document.getElementById("announce");
    if (live) live.textContent = text;
  }

  window.dash_clientside = window.dash_clientside || {};
  window.dash_clientside.workbench = {
    /* After each change of page: mark the current link, tell the theme, move the focus. */
    arrived: function (pathname) {
      const here = (pathname || "/").replace(/\/+$/, "") || "/";
      document.querySelectorAll(".rail a.nav").forEach(function (a) {
        const there = new URL(a.href, window.location.href).pathname.replace(/\/+$/, "") || "/";
        if (there === here) a.setAttribute("aria-current", "page");
        else a.removeAttribute("aria-current");
      });
      tellScheme();
      const main = document.getElementById("main");
      if (window.dash_clientside.workbench.seen && window.dash_clientside.workbench.seen !== here && main) {
        main.focus({ preventScroll: true });
        window.scrollTo(0, 0);
      }
      window.dash_clientside.workbench.seen = here;
      return "";
    },
    /* A board shows the numbers of its store. */
    paint: function (values, id) {
      const board = document.getElementById(id);
      if (!board || !Array.isArray(values)) return "";
      board.querySelectorAll(".pixel").forEach(function (cell, n) {
        cell.style.setProperty("--ink-share", String(values[n] || 0));
        cell.setAttribute("aria-selected", values[n] > 0.5 ? "true" : "false");
      });
      board._values = values.slice();
      return "";
    },
    /* The view of a result goes into the address without a new page. */
    remember: function (query) {
      if (typeof query === "string" && query.startsWith("?")) {
        window.history.replaceState(window.history.state, "", window.location.pathname + query);
      }
      return "";
    },
    /* As remember, for a run that was started: its progress comes into sight. */
    rememberJob: function (query) {
      window.dash_clientside.workbench.remember(query);
      const out = document.querySelector(".work-out");
      if (out && query) out.scrollIntoView({ block: "nearest" });
      return "";
    },
    /* As remember, for a result under its own link only. */
    rememberView: function (query) {
      if (/\/run\/[0-9a-f]+\/?$/.test(window.location.pathname)) {
        window.dash_clientside.workbench.remember(query);
      }
      return "";
    },
  };

  /* ---- the keyboard layer ------------------------------------------------------------------ */
  /* A plotly heatmap is one picture to a keyboard or a screen reader. A focusable element with
     role="grid" lies over it: arrows move a cursor, Enter opens the cell, Esc leaves it. */

  function plotOf(layer) {
    const box = layer.closest(".figure");
    return box ? box.querySelector(".js-plotly-plot") : null;
  }

  function cellsOf(gd) {
    if (!gd || !gd._fullData) return null;
    const t = gd._fullData.find(function (d) {
      return d.type === "heatmap" && d.hoverinfo !== "skip" && d.z;
    });
    const b = t ? null : gd._fullData.find(function (d) {
      const dots = d.type === "scatter" && d.mode === "markers";
      return (d.type === "bar" || dots) && d.hoverinfo !== "skip";
    });
    const trace = t || b;
    if (!trace) return null;
    const flat = !t;
    const rows = flat ? 1 : trace.z.length;
    const cols = flat ? (trace.x || trace.y).length : (trace.z[0] || []).length;
    return { gd: gd, trace: trace, flat: flat, rows: rows, cols: cols };
  }

  function numbers(v, n) {
    if (!v) return Array.from({ length: n }, function (_, i) { return i; });
    return Array.from(v);
  }

  function plain(text) {
    const box = document.createElement("textarea");
    box.innerHTML = String(text).replace(/<br\s*\/?>/gi, ", ").replace(/<\/?(b|i|sub|sup)>/gi, "");
    return box.value;
  }

  function spoken(c, row, col) {
    const data = c.trace.customdata;
    const own = c.flat ? data && data[col] : data && data[row] && data[row][col];
    const text = Array.isArray(own) ? own[0] : own;
    if (typeof text === "string") return plain(text);
    const xa = c.gd._fullLayout.xaxis, ya = c.gd._fullLayout.yaxis;
    const name = function (ax, i) { return (ax.title && ax.title.text ? ax.title.text : "") + " " + i; };
    const z = c.flat ? c.trace.y[col] : c.trace.z[row][col];
    return plain(name(ya, row) + ", " + name(xa, col)) + ", " + (z === null || z !== z ? "undefined" : Number(z).toPrecision(3));
  }

  /* A long prompt shows a window of its positions: it slides along with the cursor. */
  function reveal(c, col) {
    const xa = c.gd._fullLayout.xaxis;
    if (c.trace.type !== "heatmap" || !xa.range || !window.Plotly) return;
    const x = numbers(c.trace.x, c.cols)[col], r = xa.range.map(Number);
    if (!(x < r[0] || x > r[1])) return;
    const by = x < r[0] ? x - 0.5 - r[0] : x + 0.5 - r[1];
    window.Plotly.relayout(c.gd, { "xaxis.range": [r[0] + by, r[1] + by] });
  }

  function place(layer, c) {
    const st = layer._at;
    reveal(c, st.col);
    const cursor = layer.querySelector(".cursor");
    const full = c.gd._fullLayout, xa = full.xaxis, ya = full.yaxis;
    const box = layer.getBoundingClientRect(), g = c.gd.getBoundingClientRect();
    const xs = numbers(c.trace.x, c.cols), ys = numbers(c.trace.y, c.rows);
    const step = function (v) { return v.length > 1 ? Math.abs(v[1] - v[0]) : 1; };
    const dx = step(xs) / 2;
    let x0 = xa.d2p(xs[st.col] - dx), x1 = xa.d2p(xs[st.col] + dx);
    let y0 = 0, y1 = ya._length;
    if (c.trace.type === "scatter") {
      x0 = xa.d2p(xs[st.col]) - 8; x1 = x0 + 16;
      y0 = ya.d2p(ys[st.col]) - 8; y1 = y0 + 16;
    } else if (!c.flat) {
      const dy = step(ys) / 2;
      y0 = ya.d2p(ys[st.row] - dy); y1 = ya.d2p(ys[st.row] + dy);
    }
    cursor.style.left = (g.left - box.left + xa._offset + Math.min(x0, x1)) + "px";
    cursor.style.top = (g.top - box.top + ya._offset + Math.min(y0, y1)) + "px";
    cursor.style.width = Math.abs(x1 - x0) + "px";
    cursor.style.height = Math.abs(y1 - y0) + "px";
    const words = spoken(c, st.row, st.col);
    const cell = layer.querySelector('[role="gridcell"]');
    const line = layer.querySelector('[role="row"]');
    layer.setAttribute("aria-rowcount", c.rows);
    layer.setAttribute("aria-colcount", c.cols);
    line.setAttribute("aria-rowindex", st.row + 1);
    cell.setAttribute("aria-colindex", st.col + 1);
    cell.textContent = words;
    say(words);
  }

  function ready(layer) {
    const c = cellsOf(plotOf(layer));
    if (!c || !c.rows || !c.cols) return null;
    if (!layer._at) layer._at = { row: 0, col: 0 };
    layer._at.row = Math.min(layer._at.row, c.rows - 1);
    layer._at.col = Math.min(layer._at.col, c.cols - 1);
    return c;
  }

  function open(layer, c) {
    const st = layer._at;
    const target = JSON.parse(layer.dataset.target);
    if (target.type !== "frame-graph") return;
    const xs = numbers(c.trace.x, c.cols), ys = numbers(c.trace.y, c.rows);
    window.dash_clientside.set_props(target, { clickData: { points: [{
      x: xs[st.col], y: c.flat ? ys[st.col] : ys[st.row], by: "key", n: Date.now(),
      curveNumber: c.trace.index, pointIndex: c.flat ? st.col : undefined,
    }] } });
  }

  document.addEventListener("focusin", function (e) {
    const layer = e.target.closest && e.target.closest(".grid-layer");
    if (!layer || e.target !== layer) return;
    const c = ready(layer);
    if (c) place(layer, c);
  });

  document.addEventListener("keydown", function (e) {
    const layer = document.activeElement;
    if (!layer || !layer.classList || !layer.classList.contains("grid-layer")) return;
    const c = ready(layer);
    if (!c) return;
    const st = layer._at;
    const ya = c.gd._fullLayout.yaxis;
    const up = ya.range && ya.range[0] > ya.range[1] ? -1 : 1;
    const big = e.ctrlKey ? 1e9 : 1;
    const clamp = function (v, n) { return Math.max(0, Math.min(n - 1, v)); };
    let used = true;
    if (e.key === "ArrowRight") st.col = clamp(st.col + big, c.cols);
    else if (e.key === "ArrowLeft") st.col = clamp(st.col - big, c.cols);
    else if (e.key === "ArrowUp") st.row = clamp(st.row + up * big, c.rows);
    else if (e.key === "ArrowDown") st.row = clamp(st.row - up * big, c.rows);
    else if (e.key === "Home") st.col = 0;
    else if (e.key === "End") st.col = c.cols - 1;
    else if (e.key === "Enter" || e.key === " ") open(layer, c);
    else if (e.key === "Escape") layer.blur();
    else used = false;
    if (used) {
      e.preventDefault();
      if (e.key !== "Escape") place(layer, c);
    }
  });

  window.addEventListener("resize", function () {
    const layer = document.activeElement;
    if (layer && layer.classList && layer.classList.contains("grid-layer")) {
      const c = ready(layer);
      if (c) place(layer, c);
    }
  });

  /* ---- the board on which a digit is drawn --------------------------------------------------- */
  function dab(board, n, wipe) {
    const v = board._values, row = Math.floor(n / 8), col = n % 8;
    if (!v) return;
    const put = function (r, c, share) {
      if (r < 0 || r > 7 || c < 0 || c > 7) return;
      v[8 * r + c] = wipe ? (share === 1 ? 0 : v[8 * r + c]) : Math.max(v[8 * r + c], share);
    };
    put(row, col, 1);
    [[1, 0], [-1, 0], [0, 1], [0, -1]].forEach(function (d) { put(row + d[0], col + d[1], 0.35); });
    window.dash_clientside.workbench.paint(v, board.id);
  }

  function keep(board) {
    if (board._values) {
      window.dash_clientside.set_props(board.dataset.store, { data: board._values.slice() });
    }
  }

  let painting = null;
  document.addEventListener("pointerdown", function (e) {
    const cell = e.target.closest && e.target.closest(".board .pixel");
    if (!cell) return;
    e.preventDefault();
    cell.focus({ preventScroll: true });
    painting = cell.closest(".board");
    if (cell.hasPointerCapture && cell.hasPointerCapture(e.pointerId)) {
      cell.releasePointerCapture(e.pointerId);
    }
    dab(painting, Number(cell.dataset.n), e.shiftKey);
  });
  document.addEventListener("pointermove", function (e) {
    if (!painting) return;
    const under = document.elementFromPoint(e.clientX, e.clientY);
    const cell = under && under.closest(".board .pixel");
    if (cell && painting.contains(cell)) dab(painting, Number(cell.dataset.n), e.shiftKey);
  });
  document.addEventListener("pointerup", function () {
    if (painting) keep(painting);
    painting = null;
  });

  document.addEventListener("keydown", function (e) {
    const cell = document.activeElement;
    if (!cell || !cell.classList || !cell.classList.contains("pixel")) return;
    const board = cell.closest(".board"), n = Number(cell.dataset.n);
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 8, ArrowUp: -8 };
    if (e.key === " " || e.key === "Enter") {
      e.preventDefault();
      if (!board._values) return;
      board._values[n] = board._values[n] > 0.5 ? 0 : 1;
      window.dash_clientside.workbench.paint(board._values, board.id);
      keep(board);
      say(cell.getAttribute("aria-label") + (board._values[n] ? ", on" : ", off"));
    } else if (e.key in steps) {
      e.preventDefault();
      const to = n + steps[e.key];
      const across = Math.abs(steps[e.key]) === 1;
      if (to < 0 || to > 63 || (across && Math.floor(to / 8) !== Math.floor(n / 8))) return;
      const next = board.querySelector('[data-n="' + to + '"]');
      cell.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    }
  });
})();
