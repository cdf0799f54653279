import torch

from chameleon_lite.app.score import continue_mixed, left_padded, until_end
from chameleon_lite.heads import HeadUpdate, update_logits


def prompts_of(adapter, texts):
    return [adapter.tokenizer(t)["input_ids"] for t in texts]


def test_end_to_end_logits_and_nll_equal_clusters_apart(adapter, some_texts, apart):
    prompts = prompts_of(adapter, some_texts(12))
    group = torch.arange(12) % 3
    update = adapter.update_for(adapter.centroids)

    def nll(rows, own_group):
        ids, mask = left_padded([prompts[i] for i in rows], 256)
        own = (
            update
            if own_group is None
            else HeadUpdate(update.down[own_group : own_group + 1], update.up[own_group : own_group + 1])
        )
        prepared = update_logits(own, group[rows] if own_group is None else torch.zeros(len(rows)).long())
        with torch.no_grad():
            logits = adapter(
                ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp_min(0), head_update=prepared
            ).logits
        scored = (mask[:, 1:] * mask[:, :-1]).bool()
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
        return [row[keep].double().sum() for row, keep in zip(loss, scored)]

    together = torch.stack(nll(torch.arange(12), None))
    separate = torch.stack(apart(lambda rows: nll(rows, int(group[rows[0]])), group))
    tokens = sum(map(len, prompts)) - len(prompts)
    assert abs(float((together - separate).sum()) / tokens) <= 1e-5


def test_greedy_tokens_equal_clusters_apart_and_any_batch_size(adapter, some_texts, apart):
    prompts = prompts_of(adapter, some_texts(10))
    group = torch.tensor([2, 0, 1, 1, 2, 0, 0, 0, 2, 1])
    update = adapter.update_for(adapter.centroids)
    together = continue_mixed(adapter, prompts, group, update, 6)
    separate = apart(
        lambda rows: continue_mixed(adapter, [prompts[i] for i in rows], group[rows], update, 6), group
    )
    assert together == separate == continue_mixed(adapter, prompts, group, update, 6, batch=3)
    other = continue_mixed(adapter, prompts, (group + 1) % 3, update, 6)
    assert other != together


def test_end_token_and_what_follows_is_cut():
    assert until_end([1, 2, 9, 9, 9], 9) == [1, 2] == until_end([1, 2, 8, 0], [8, 9])
    assert until_end([1, 2], 9) == [1, 2] == until_end([1, 2], None)


def test_left_padding():
    ids, mask = left_padded([[1], [2, 3]], 7)
    assert ids.tolist() == [[7, 1], [2, 3]] and mask.tolist() == [[0, 1], [1, 1]]
