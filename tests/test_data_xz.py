import random

from gpt2_lightning.data.token_store import primed_xz_bits_per_byte


def test_a_text_seen_before_costs_next_to_nothing() -> None:
    text = bytes(random.Random(0).choices(b"abcdefgh ", k=20_000))
    assert primed_xz_bits_per_byte(text, text) < 0.05


def test_new_text_costs_its_entropy() -> None:
    chance = random.Random(0)
    train, held_out = (bytes(chance.choices(range(16), k=20_000)) for _ in range(2))
    assert 4.0 <= primed_xz_bits_per_byte(train, held_out) < 4.6  # 16 equal values: 4 bits
