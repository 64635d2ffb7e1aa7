"""Real drafters: what they propose, when they stop, and that an engine full of them answers as without."""

import random

import drafters
import numpy as np
import pytest
import tiny

import pyllama
from pyllama.drafting.account import Account
from pyllama.drafting.drafts import AdaptiveDrafting
from pyllama.drafting.lookup import LookUp
from pyllama.drafting.model_drafter import ModelDrafter
from pyllama.drafting.pace import Pace
from pyllama.drafting.proposals import Wanted, merged
from pyllama.drafting.vocabularies import check_same
from pyllama.engine import Engine
from pyllama.errors import PyllamaError, UnsupportedError
from pyllama.generation import Answer, Task
from pyllama.generation.sampler import SamplingParams
from pyllama.planning.drafting import MOST_CHAIN

VOCAB = 101


def folder(path, seed, **config):
    config = tiny.tiny_config(**config)
    return tiny.write_huggingface(path, config, tiny.random_tensors(config, seed=seed))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model, one that is nearly it, and one that has nothing to do with it."""
    base = tmp_path_factory.mktemp("drafting")
    near_config = tiny.tiny_config()
    tensors = tiny.random_tensors(near_config, seed=1)
    rng = np.random.default_rng(0)
    near = {name: t + 0.02 * t.std() * rng.standard_normal(t.shape).astype(t.dtype) for name, t in tensors.items()}
    tiny.write_huggingface(base / "target", near_config, tensors)
    tiny.write_huggingface(base / "near", near_config, near)
    folder(base / "far", 99, hidden_size=32, num_attention_heads=4, num_key_value_heads=2)
    return base


def model_drafter(path, **options):
    model = pyllama.load(path, context_length=200)
    return ModelDrafter("tiny", model.decoder, model.close, **options)


def task_of(prompt_ids, prediction=(), **sampling):
    answer = Answer(
        _Tokenizer(),
        prompt_ids,
        SamplingParams(**sampling),
        vocab_size=VOCAB,
        context_length=200,
        prediction=prediction,
    )
    return Task(answer)


class _Tokenizer:
    eos_token_ids = ()

    def stream(self, **options):
        return self

    def push(self, token_id):
        return ""

    def finish(self):
        return ""


def drafted(path, drafts, prompt_ids, **sampling):
    with pyllama.load(path, context_length=200) as model:
        model.drafting = drafts
        generation = model.generate(prompt_ids, ignore_eos=True, fingerprint=True, **sampling)
        generation.read()
        return generation.token_ids, generation.fingerprint.hexdigest(), model.passes


def always(drafter, **options):
    """Drafting beside weights that stream, as far as it knows, so that nothing stops it."""
    drafts = AdaptiveDrafting(drafter, streamed=lambda: True, **options)
    drafts._account(drafter)._has_paid = True
    return drafts


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "seed": 4}, {"temperature": 1.0, "top_k": 9, "seed": 2}])
@pytest.mark.parametrize("which", ["target", "near", "far"])
@pytest.mark.parametrize("streamed", [True, False])
def test_a_model_drafts(folders, which, sampling, streamed):
    prompt_ids = [5, 9, 2] * 12
    plain = drafted(folders / "target", None, prompt_ids, max_tokens=80, **sampling)
    drafts = AdaptiveDrafting(model_drafter(folders / which), streamed=lambda: streamed)
    drafts._account(drafts.drafter)._pause = 0 if which != "far" else 16
    assert drafted(folders / "target", drafts, prompt_ids, max_tokens=80, **sampling)[:2] == plain[:2]
    assert drafts.accepted <= drafts.proposed


@pytest.mark.parametrize("kind", ["llama", *tiny.RECURRENT])
def test_a_model_that_is_its_own_drafter_is_right(tmp_path, kind):
    target = folder(tmp_path, 1, model_type=kind)
    for sampling in ({}, {"temperature": 0.9, "seed": 3}):
        plain = drafted(target, None, [5, 9, 2], max_tokens=60, **sampling)
        drafts = always(drafter := model_drafter(target))
        drafts._wanted = lambda tasks, room: Wanted(24)  # whatever its time
        drafts._book = lambda *arguments: None
        found = drafted(target, drafts, [5, 9, 2], max_tokens=60, **sampling)
        assert found[:2] == plain[:2]
        assert found[2] < plain[2] / 3
        states = drafter.decoder.cache.states
        assert states is None or (states.slots.used, states.rows.used) == (0, 0)


def test_a_drafter_with_another_number_of_tokens(folders, tmp_path):
    plain = drafted(folders / "target", None, [5, 9, 2], max_tokens=30)
    for vocab in (97, 128):
        other = model_drafter(folder(tmp_path / str(vocab), 1, vocab_size=vocab))
        assert drafted(folders / "target", always(other), [5, 9, 2], max_tokens=30)[:2] == plain[:2]


def test_a_drafter_of_a_shorter_context_stops_at_its_end(folders):
    model = pyllama.load(folders / "target", context_length=24)
    plain = drafted(folders / "target", None, [5, 9, 2], max_tokens=60)
    drafts = always(ModelDrafter("short", model.decoder, model.close))
    assert drafted(folders / "target", drafts, [5, 9, 2], max_tokens=60)[:2] == plain[:2]
    assert drafts.drafter is not None


def test_a_drafter_whose_weights_are_damaged_is_given_up(folders, monkeypatch, caplog):
    drafter = model_drafter(folders / "near")

    def broken(*arguments, **options):
        raise PyllamaError("rows from 0 are damaged")

    monkeypatch.setattr(drafter.decoder, "extend", broken)
    dropped = []
    drafts = always(drafter, on_drop=lambda: dropped.append(True))
    plain = drafted(folders / "target", None, [5, 9, 2], max_tokens=30)
    assert drafted(folders / "target", drafts, [5, 9, 2], max_tokens=30)[:2] == plain[:2]
    assert dropped == [True]
    assert "tiny is given up: rows from 0 are damaged" in caplog.text


def test_a_full_cache_of_the_drafter_costs_only_time(folders):
    drafter = model_drafter(folders / "near")
    drafter.decoder.cache.pages.limit = 3
    plain = drafted(folders / "target", None, [5, 9, 2] * 20, max_tokens=60)
    assert drafted(folders / "target", always(drafter), [5, 9, 2] * 20, max_tokens=60)[:2] == plain[:2]
    assert drafter.decoder.cache.pages.used <= 3


def test_what_a_drafter_held_is_given_back(folders):
    drafter = model_drafter(folders / "near")
    drafts = always(drafter)
    drafted(folders / "target", drafts, [5, 9, 2] * 20, max_tokens=60)
    assert drafter.decoder.cache.pages.used == 0


def test_what_a_drafter_reads_first_is_in_no_tokens_time(folders):
    drafter = model_drafter(folders / "near")
    drafts = AdaptiveDrafting(drafter, streamed=lambda: False)
    (tree,) = drafts.propose([task_of([1, 2, 3])], 8)
    assert not tree  # nothing is known yet to compare with
    assert drafter.loaded.load_s > 0 and drafts.draft_s > 0
    drafts.passed([], 3, 0.1, 1)
    assert drafts._account(drafter).open


def test_a_chain_is_the_best_branch_and_ends_where_it_is_unsure(folders):
    drafter = model_drafter(folders / "near")
    task = task_of([1, 2, 3])
    (tree,) = drafter.trees([task], Wanted(64, chain=True))
    assert len(list(tree.branches())) <= 1
    assert len(tree) <= MOST_CHAIN
    assert all(p >= 0.4 for p in tree.probabilities)


def test_a_tree_is_best_first(folders):
    drafter = model_drafter(folders / "near")
    (tree,) = drafter.trees([task_of([1, 2, 3])], Wanted(40))
    assert len(tree) == 40
    for node, parent in enumerate(tree.parents):
        assert parent < 0 or tree.probabilities[node] <= tree.probabilities[parent] + 1e-12
    # Asked again, as after a pass that failed: the same.
    task = task_of([1, 2, 3])
    first, again = drafter.trees([task], Wanted(40))[0], drafter.trees([task], Wanted(40))[0]
    assert (first.tokens, first.parents) == (again.tokens, again.parents)


def test_engine_answers_in_company_are_those_alone(folders):
    rng = random.Random(5)
    prompts = [[rng.randrange(VOCAB) for _ in range(rng.choice((3, 40)))] for _ in range(10)]
    options = [{"max_tokens": rng.choice((5, 30)), "temperature": rng.choice((0.0, 0.9)), "seed": i} for i in range(10)]
    plain = [drafted(folders / "target", None, p, **o)[:2] for p, o in zip(prompts, options, strict=True)]
    for drafter in ("near", "far", None):
        for kv_pages in (9, 60):
            with pyllama.load(folders / "target", context_length=200) as model:
                model.drafting = always(model_drafter(folders / drafter) if drafter else None)
                engine = Engine(model, kv_nbytes=kv_pages * model.decoder.cache.page_nbytes, max_running=4)
                requests = [
                    engine.submit(p, SamplingParams(ignore_eos=True, **o), lambda event: None, fingerprint=True)
                    for p, o in zip(prompts, options, strict=True)
                ]
                passes = 0
                while engine.step():
                    passes += 1
                    if passes == 6:
                        cancelled = engine.submit(
                            [1, 2], SamplingParams(max_tokens=50, ignore_eos=True), lambda event: None
                        )
                    if passes == 9:
                        engine.cancel(cancelled)
                found = [(r.answer.token_ids, r.answer.fingerprint.hexdigest()) for r in requests]
                assert found == plain
                stats = engine.stats()
                assert stats.accepted_tokens <= stats.proposed_tokens
                assert stats.pages_used == stats.pages_kept
                assert stats.completion_tokens >= sum(len(ids) for ids, _ in plain)


def test_fools_in_an_engine(folders):
    prompts = [[i, 5, 9] for i in range(6)]
    plain = [drafted(folders / "target", None, p, max_tokens=20)[:2] for p in prompts]
    with pyllama.load(folders / "target", context_length=200) as model:
        model.drafting = drafters.fool(3)
        engine = Engine(model, kv_nbytes=12 * model.decoder.cache.page_nbytes)
        requests = [
            engine.submit(p, SamplingParams(ignore_eos=True, max_tokens=20), lambda event: None, fingerprint=True)
            for p in prompts
        ]
        while engine.step():
            pass
        assert [(r.answer.token_ids, r.answer.fingerprint.hexdigest()) for r in requests] == plain
        assert len(model.drafting.forgotten) == 6


# --- look-up ---


def test_look_up_goes_on_as_the_text_did_before():
    task = task_of([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3])
    (tree,) = LookUp().trees([task], Wanted(5))
    assert next(iter(tree.branches())) == [4, 5, 6, 7, 8]


def test_look_up_knows_several_ways():
    task = task_of([1, 2, 7, 1, 2, 8, 1, 2])
    (tree,) = LookUp().trees([task], Wanted(20))
    assert {branch[0] for branch in tree.branches()} == {7, 8}
    (chain,) = LookUp().trees([task_of([1, 2, 7, 1, 2, 8, 1, 2])], Wanted(20, chain=True))
    assert len(list(chain.branches())) == 1


def test_look_up_of_nothing_is_nothing():
    assert not LookUp().trees([task_of([1, 2, 3])], Wanted(20))[0]


def test_a_prediction_is_proposed_from_its_beginning_and_where_the_answer_is_in_it():
    task = task_of([50, 51], prediction=[1, 2, 3, 4, 5, 6])
    lookup = LookUp()
    (tree,) = lookup.trees([task], Wanted(4))
    assert list(tree.branches()) == [[1, 2, 3, 4]]
    task.answer.token_ids += [9, 3, 4]
    (tree,) = lookup.trees([task], Wanted(4))
    assert [5, 6] in list(tree.branches())


def test_look_up_learns_how_often_it_is_right():
    right, wrong = LookUp(), LookUp()
    for lookup, following in ((right, [4, 5, 6]), (wrong, [90, 91, 92])):
        task = task_of([1, 2, 3, 4, 5, 6, 1, 2, 3])
        for token_id in following * 3:
            lookup.trees([task], Wanted(8))
            task.answer.token_ids.append(token_id)
        lookup.trees([task], Wanted(8))
    assert right._right[3] / right._tried[3] > wrong._right[3] / wrong._tried[3]


def test_merged_trees_keep_the_most_probable():
    one, other = drafters.chain([1, 2, 3]), drafters.chain([1, 9])
    one.probabilities[:] = [0.9, 0.5, 0.1]
    other.probabilities[:] = [0.8, 0.4]
    assert list(merged(one, other, 3).branches()) == [[1, 2], [1, 9]]
    assert sorted(merged(one, other, 9).branches()) == [[1, 2, 3], [1, 9]]


# --- pace and account ---


def test_pace_finds_what_tokens_cost_and_how_many_are_free():
    pace = Pace()
    for tokens in (1, 5, 17, 9, 33, 1, 17):
        busy = 0.1 + 0.02 * tokens
        pace.passed(tokens, max(1.0, busy), max(0.0, 1.0 - busy))
    assert pace.node_s == pytest.approx(0.02)
    assert pace.free() in (38, 39)  # 0.1 + 0.02 * (1 + 39) = 0.9 of the disk's second
    assert pace.base_s() == pytest.approx(1.0)
    assert pace.base_s(0.5) == pytest.approx(0.5)
    assert pace.base_s(0.0) == pytest.approx(0.12)  # the arithmetic stays


def test_pace_of_weights_in_memory_leaves_nothing_free():
    pace = Pace()
    assert pace.base_s() is None
    for tokens in (1, 4, 1, 8):
        pace.passed(tokens, 0.05 + 0.01 * tokens, 0.0)
    assert pace.free() == 0
    assert pace.base_s() == pytest.approx(0.06)


def test_passes_of_prompts_are_left_out():
    pace = Pace()
    pace.passed(1, 0.05, 0.0)
    pace.passed(512, 90.0, 0.0)
    assert pace.base_s() == 0.05
    assert pace.node_s < 0.05


def until_hopeless(account, streamed):
    """(passes with proposals, passes) until a drafter that never hits is given up."""
    tried = passed = 0
    while not account.hopeless:
        if account.open:
            account.book(1.2, 1.0, 1.0, streamed=streamed)
            tried += 1
        else:
            account.skipped()
        passed += 1
        assert passed < 2000
    return tried, passed


def test_a_drafter_whose_memory_streamed_weights_could_have_is_soon_given_up_if_it_never_paid():
    assert until_hopeless(Account(), streamed=True) == (6, 6)


def test_one_that_has_paid_is_tried_again_after_pauses_that_grow():
    account = Account()
    for _ in range(16):
        account.book(1.2, 3.0, 1.0, streamed=True)
    while account.open:
        account.book(1.2, 0.5, 1.0, streamed=True)
    tried, passed = until_hopeless(account, streamed=True)
    assert tried == 6
    assert passed > 80


def test_where_weights_are_in_memory_the_first_pause_is_as_long_as_the_last():
    tried, passed = until_hopeless(Account(), streamed=False)
    assert tried == 12
    assert passed == 12 + 2 * 512


def test_an_account_stays_open_while_it_pays():
    account = Account()
    for _ in range(100):
        account.book(1.2, 3.0, 1.0, streamed=True)
        assert account.open


def test_an_account_does_not_judge_before_it_knows_a_plain_pass():
    account = Account()
    for _ in range(100):
        account.book(1.2, 1.0, None, streamed=True)
    assert account.open


class Vocabulary:
    def __init__(self, tokens):
        self.tokens = tokens
        self.vocab_size = len(tokens)

    def token_bytes(self, token_id):
        return self.tokens[token_id].encode()


def test_vocabularies_must_be_the_same_but_for_their_ends():
    tokens = [f"t{i}" for i in range(5000)]
    check_same(Vocabulary(tokens), Vocabulary(tokens), "x")
    check_same(Vocabulary(tokens), Vocabulary(tokens[:4800]), "x")
    check_same(Vocabulary(tokens), Vocabulary([*tokens, *["<pad>"] * 500]), "x")
    with pytest.raises(UnsupportedError, match=r"draft: x has another vocabulary: its token 77 is 'other'"):
        check_same(Vocabulary(tokens), Vocabulary([*tokens[:77], "other", *tokens[78:]]), "x")
    with pytest.raises(UnsupportedError, match="x has 100 tokens, this model 5000"):
        check_same(Vocabulary(tokens), Vocabulary(tokens[:100]), "x")
