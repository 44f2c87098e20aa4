"""The figures of one explained pair, by matplotlib, for a paper."""

import numpy as np

from reporting.figures import matplotlib_figure

LIT, CHOSEN = "#e8701a", "#1f6fc4"
WORDS_PER_ROW = 5


def explanation_figures(explanation, words, view, region):
    """(name, figure) of each: where words look, both attentions, nodes, edges around `region`."""
    yield "words", draw_words(explanation, words, view)
    yield "attention", draw_attention(explanation, words)
    yield "nodes", draw_nodes(explanation, words)
    yield "word-edges", draw_word_edges(explanation, words)
    yield "kernels", draw_kernels(explanation, view, region)


def draw_view(axes, view, weights, top=None, numbers=()):
    """The picture (or a blank page) with its regions filled as strongly as their weights say, `top` most."""
    from matplotlib.patches import Rectangle

    width, height = view.size
    if view.picture is not None:
        axes.imshow(np.asarray(view.picture), extent=(0, width, height, 0), aspect="equal")
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[], aspect="equal")
    axes.spines[:].set_color("0.8")
    top = max(top or weights.max(), 1e-12)
    for r in np.argsort(weights):
        x, y, x2, y2 = view.boxes[r] * [width, height, width, height]
        strength = weights[r] / top
        box = {"xy": (x, y), "width": x2 - x, "height": y2 - y}
        axes.add_patch(Rectangle(**box, facecolor=LIT, alpha=0.35 * strength, linewidth=0))
        axes.add_patch(Rectangle(**box, fill=False, edgecolor=LIT, alpha=max(0.1, strength), linewidth=0.6 + strength))
    for r in numbers:
        x, y = view.boxes[r][:2] * [width, height]
        axes.text(x, y, r, fontsize=7, color="white", va="top", bbox={"facecolor": LIT, "pad": 1, "linewidth": 0})


def draw_words(explanation, words, view):
    """A picture for each word, with the regions it attends to (β), and what it adds to the score."""
    shown = [w for w, word in enumerate(words) if word not in ("<start>", "<end>")] or range(len(words))
    columns = min(WORDS_PER_ROW, len(shown))
    rows = -(-len(shown) // columns)
    tall = view.size[1] / view.size[0]
    figure = matplotlib_figure((2.4 * columns, (2.4 * tall + 0.35) * rows))
    for place, w in enumerate(shown, start=1):
        axes = figure.add_subplot(rows, columns, place)
        draw_view(axes, view, explanation.beta[w], numbers=[explanation.beta[w].argmax()])
        axes.set_title(f"{words[w]}  {explanation.words[w]:+.3f}", fontsize=9)
    return figure


def draw_attention(explanation, words):
    """Both attentions as tables: regions across, words down."""
    n, regions = explanation.beta.shape
    figure = matplotlib_figure((max(6, 0.2 * regions + 2), 2 * (0.2 * n + 0.9)))
    tables = (
        (explanation.beta, "β: each word attends to regions (a row adds up to 1)"),
        (explanation.alpha.T, "α: each region attends to words (a column adds up to 1)"),
    )
    for place, (table, title) in enumerate(tables, start=1):
        axes = figure.add_subplot(2, 1, place)
        shown = axes.imshow(table, cmap="Oranges", vmin=0, aspect="auto")
        axes.set_yticks(range(n), words, fontsize=8)
        axes.set_title(title, fontsize=9, loc="left")
        axes.tick_params(labelsize=8)
        figure.colorbar(shown, ax=axes, pad=0.01).ax.tick_params(labelsize=8)
    axes.set_xlabel("region", fontsize=9)
    return figure


def draw_nodes(explanation, words):
    """What each node adds to the score, above its matching vector."""
    n, regions = len(words), len(explanation.regions)
    figure = matplotlib_figure((max(8, 0.2 * (n + regions) + 2), 4.6))
    grid = figure.add_gridspec(2, 2, width_ratios=[max(n, 8), regions], height_ratios=[1, 1.2])
    sides = (
        (explanation.words, explanation.word_match, "words", words),
        (explanation.regions, explanation.region_match, "regions", None),
    )
    for k, (added, match, name, names) in enumerate(sides):
        bars, table = figure.add_subplot(grid[0, k]), figure.add_subplot(grid[1, k])
        bars.bar(range(len(added)), added, color=np.where(added < 0, LIT, CHOSEN))
        bars.axhline(0, color="0.5", linewidth=0.8)
        bars.set(xlim=(-0.5, len(added) - 0.5), xticks=[])
        bars.set_title(f"{name} add {added.sum():.3f} to the score {explanation.score:.3f}", fontsize=9, loc="left")
        bars.spines[["top", "right"]].set_visible(False)
        shown = table.imshow(match.T, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
        table.set_title("matching vectors", fontsize=9, loc="left")
        table.set_ylabel("block", fontsize=8)
        if names:
            table.set_xticks(range(n), names, rotation=60, ha="right", rotation_mode="anchor")
        for axes in (bars, table):
            axes.tick_params(labelsize=8)
    figure.colorbar(shown, ax=table, pad=0.02).ax.tick_params(labelsize=8)
    return figure


def draw_word_edges(explanation, words):
    """The sentence with arcs as strong as the weights of its edges, and the weights as a table."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    n, weights = len(words), explanation.word_edges
    figure = matplotlib_figure((max(6, 0.62 * n), 0.28 * n + 3.2))
    arcs, table = figure.subplots(2, 1, height_ratios=[2, 0.28 * n + 0.6])
    least = 0.35 if explanation.pairs else 0.04
    pairs = explanation.pairs or [(i, j) for i in range(n) for j in range(i + 1, n)]
    for i, j in pairs:
        weight, high = max(weights[i, j], weights[j, i]), (j - i) ** 0.8
        curve = Path([(i, 0), (i, high), (j, high), (j, 0)], [Path.MOVETO] + [Path.CURVE4] * 3)
        look = {"linewidth": 0.5 + 2.5 * weight, "alpha": least + (1 - least) * weight}
        arcs.add_patch(PathPatch(curve, fill=False, edgecolor=CHOSEN, **look))
        if explanation.pairs and weight >= 0.005:  # of j for i, of i for j
            text = f"{weights[i, j]:.2f} · {weights[j, i]:.2f}"
            arcs.text((i + j) / 2, 0.75 * high, text, fontsize=6.5, ha="center", va="bottom")
    highest = 0.85 * max(((j - i) ** 0.8 for i, j in pairs), default=1)
    arcs.set(xlim=(-0.6, n - 0.4), ylim=(0, highest), yticks=[])
    arcs.set_xticks(range(n), words, fontsize=9)
    arcs.tick_params(length=0)
    arcs.spines[["top", "right", "left"]].set_visible(False)
    shown = table.imshow(weights, cmap="Blues", vmin=0, aspect="auto")
    table.set_title("weight of the word across for the word on the left", fontsize=9, loc="left")
    table.set_yticks(range(n), words, fontsize=8)
    table.set_xticks(range(n), words, fontsize=8, rotation=60, ha="right", rotation_mode="anchor")
    figure.colorbar(shown, ax=table, pad=0.01).ax.tick_params(labelsize=8)
    return figure


def draw_kernels(explanation, view, region):
    """The weight of every other region for the chosen one, in each spatial kernel."""
    from matplotlib.patches import Rectangle

    count = len(explanation.kernels)
    tall = view.size[1] / view.size[0]
    figure = matplotlib_figure((10, 2 * (2.5 * tall + 0.35)))
    page = view._replace(picture=None)  # the boxes are clearer without
    top = explanation.kernels[:, region].max()  # one scale for all kernels
    for k, kernel in enumerate(explanation.kernels):
        axes = figure.add_subplot(2, count // 2, k + 1)
        draw_view(axes, page, kernel[region], top)
        x, y, x2, y2 = view.boxes[region] * [*view.size, *view.size]
        axes.add_patch(Rectangle((x, y), x2 - x, y2 - y, fill=False, edgecolor=CHOSEN, linewidth=2))
        axes.set_title(f"kernel {k + 1}: sum {kernel[region].sum():.2f}", fontsize=8)
    figure.suptitle(f"Spatial weights around region {region}", fontsize=9, x=0.01, ha="left")
    return figure
