import torch

from chameleon_study.look import extreme_tokens, logit_shift, text_states, token_text


def test_states_are_the_backbones_and_pads_are_left_out(adapter, some_texts):
    texts = some_texts(3)
    together = text_states(adapter, texts)
    alone = torch.cat([text_states(adapter, [t]) for t in texts])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    assert len(together) == sum(len(adapter.tokenizer(t)["input_ids"]) for t in texts)


def test_shift_is_the_mean_difference_of_logits(adapter, some_texts):
    states = text_states(adapter, some_texts(2))
    shift = logit_shift(adapter, adapter.centroids, states)
    update = adapter.update_for(adapter.centroids)
    by_hand = (states @ update.dense(1).T).mean(0)
    torch.testing.assert_close(shift[1], by_hand, rtol=1e-3, atol=1e-4)


def test_most_raised_and_most_lowered(adapter):
    shift = torch.zeros(257)
    shift[ord("a")], shift[ord(" ")], shift[ord("z")] = 2.0, 1.0, -3.0
    raised, lowered = extreme_tokens(adapter, shift, count=2)
    assert raised == [("a", 2.0), ("␣", 1.0)] and lowered[0] == ("z", -3.0)
    assert token_text(adapter.tokenizer, 10) == "⏎" and token_text(adapter.tokenizer, 7) == "U+0007"
    assert token_text(adapter.tokenizer, 200) == "#200"  # half a character
