import pytest

from gpt2_lightning.evaluate.text import detokenize_article


@pytest.mark.parametrize(
    ("tokenised", "text"),
    [
        ("a 10 @-@ year plan", "a 10-year plan"),
        ("1 @,@ 000 or 2 @.@ 5", "1,000 or 2.5"),
        ("yes , no ; well : so . Then ! What ? Ah", "yes, no; well: so. Then! What? Ah"),
        ("( in 1923 ) [ sic ] { x }", "(in 1923) [sic] {x}"),
        ('he said " come in " twice', 'he said "come in" twice'),
        ("the towns ' bridges", "the towns' bridges"),
        ("it 's old", "it's old"),
        (" = = History = = \n", " == History ==\n"),
        ("at 20 ° south", "at 20°south"),
        ("N of the river N side", "N of the river 1 side"),  # lossy, as the harness has it
        ("one \n two", "one\ntwo"),
        # a pair of apostrophes far apart is taken for quotation marks
        ("rock ' n ' roll", "rock 'n' roll"),
    ],
)
def test_by_the_harness_rules(tokenised: str, text: str) -> None:
    assert detokenize_article(tokenised) == text
