import pytest

from gpt2_lightning.report.charts import BOTTOM, LEFT, RIGHT, TOP, Line, draw, ticks


@pytest.mark.parametrize(
    ("low", "high", "whole", "found"),
    [
        (0, 12, True, [0, 3, 6, 9, 12]),
        (0, 1, True, [0, 1]),
        (0, 7, True, [0, 2, 4, 6]),
        (0, 13_000, True, [0, 3000, 6000, 9000, 12_000]),
        (7.62, 9.33, False, [8, 8.4, 8.8, 9.2]),
        (0, 0.00105, False, [0, 0.00025, 0.0005, 0.00075, 0.001]),
        (0, 1.05, False, [0, 0.25, 0.5, 0.75, 1]),
        (-0.3, 0.3, False, [-0.3, -0.15, 0, 0.15, 0.3]),
        (2.999, 3.001, False, [2.9992, 2.9996, 3, 3.0004, 3.0008]),
    ],
)
def test_ticks_are_round(low: float, high: float, whole: bool, found: list[float]) -> None:
    assert ticks(low, high, whole=whole) == pytest.approx(found)


def test_a_curve_is_drawn_where_its_values_are() -> None:
    line = Line("a & b", [(0, 10.0), (5, 0.0), (10, 5.0)], 8, dots=True)
    chart = draw("Norm", [Line("none", [], 0), line], from_zero=True)
    assert chart is not None
    ((drawn, places, dots),) = chart.lines
    assert drawn is line
    assert line.look == "c2 dashed"  # the ninth of six colours
    (x0, y0), (x1, y1), (x2, y2) = [tuple(map(float, it.split(","))) for it in places.split()]
    assert (x0, x2) == (LEFT, RIGHT)
    assert x1 == (LEFT + RIGHT) / 2
    assert y1 == BOTTOM  # 0 is at the foot, and half of the highest in the middle between
    assert y2 == pytest.approx((y0 + y1) / 2, abs=0.1)
    assert y0 > TOP
    assert [label for y, label in chart.y_ticks if y in (y0, y1)] == ["0", "10"]
    assert [label for _, label in chart.x_ticks] == ["0", "2", "4", "6", "8", "10"]
    assert dots[0] == (x0, y0, "a & b: 10 at step 0")
    assert chart.spoken == "Norm: a & b from 10 at step 0 to 5 at step 10"


def test_one_point_and_a_flat_curve_are_drawn_too() -> None:
    for points in ([(3, 2.0)], [(0, 2.0), (9, 2.0)], [(0, 0.0)]):
        for from_zero in (True, False):
            chart = draw("Loss", [Line("it", points, 0)], from_zero=from_zero)
            assert chart is not None
            assert len(chart.lines[0][2]) == (len(points) == 1)  # a dot, where there is no line
            assert 2 <= len(chart.y_ticks) <= 6
    assert draw("Loss", [Line("it", [], 0)]) is None


def test_many_points_are_thinned_and_no_peak_is_lost() -> None:
    points = [(step, 50.0 if step == 77_777 else step % 7) for step in range(100_000)]
    chart = draw("Loss", [Line("it", points, 0)], from_zero=True)
    assert chart is not None
    places = [tuple(map(float, it.split(","))) for it in chart.lines[0][1].split()]
    assert len(places) < 2500
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    peak = min(places, key=lambda place: place[1])
    assert peak[0] == pytest.approx(LEFT + (RIGHT - LEFT) * 0.77777, abs=0.1)
