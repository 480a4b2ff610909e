from gpt2_lightning.evaluate.scoring import Window, block_windows, rolling_windows, sliding_windows

W = Window


def test_disjoint_windows_do_not_score_their_first() -> None:
    windows = list(sliding_windows(1, 11, context=4, stride=4))
    assert windows == [W(1, 2, 5), W(5, 6, 9), W(9, 10, 11)]


def test_sliding_windows_score_each_once_with_what_context_there_is() -> None:
    windows = list(sliding_windows(0, 11, context=4, stride=2))
    assert windows == [W(0, 1, 4), W(2, 4, 6), W(4, 6, 8), W(6, 8, 10), W(8, 10, 11)]


def test_a_text_shorter_than_the_context_is_one_window() -> None:
    assert list(sliding_windows(3, 6, context=8, stride=4)) == [W(3, 4, 6)]


def test_a_last_window_of_one_id_that_has_no_context_scores_nothing() -> None:
    assert list(sliding_windows(0, 9, context=4, stride=4)) == [W(0, 1, 4), W(4, 5, 8)]


def test_rolling_windows_score_a_whole_context_and_the_last_reaches_back() -> None:
    # 0 is the end-of-text, 1 to 9 the article
    windows = list(rolling_windows(0, 10, context=4, unit=7))
    assert windows == [W(0, 1, 5, 7), W(4, 5, 9, 7), W(5, 9, 10, 7)]


def test_rolling_windows_of_a_short_article() -> None:
    assert list(rolling_windows(20, 23, context=4)) == [W(20, 21, 23)]
    assert list(rolling_windows(20, 21, context=4)) == []


def test_blocks_predict_every_id_but_the_leading_end_of_text() -> None:
    assert list(block_windows(10, block_size=4)) == [W(0, 1, 5), W(4, 5, 9), W(8, 9, 10)]
    assert list(block_windows(9, block_size=4)) == [W(0, 1, 5), W(4, 5, 9)]
