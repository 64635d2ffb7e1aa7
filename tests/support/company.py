"""Requests to an engine and what they came to, beside answers of one at a time: what its tests share."""

from pyllama.engine import Engine
from pyllama.generation import Step
from pyllama.generation.sampler import SamplingParams


class Listener(list):
    """Keeps what it is told."""

    @property
    def text(self):
        return "".join(event.text for event in self if isinstance(event, Step))

    @property
    def end(self):
        return self[-1].finish_reason if isinstance(self[-1], Step) else self[-1]


def prompt(number, length=20):
    """Token ids of a text of its own."""
    return [(7 * number * number + 3 * number * i + i * i) % 256 for i in range(length)]


def submit(engine, prompt_ids, max_tokens=8, **options):
    sampling = {"max_tokens": max_tokens, "ignore_eos": True} | {
        name: options.pop(name) for name in ("temperature", "seed", "stop", "logprobs") if name in options
    }
    listener = Listener()
    request = engine.submit(prompt_ids, SamplingParams(**sampling), listener.append, fingerprint=True, **options)
    return request, listener


def run(engine):
    steps = 0
    while engine.step():
        steps += 1
        assert steps < 5000
    return steps


def solo(model, prompt_ids, **options):
    generation = model.generate(prompt_ids, ignore_eos=True, fingerprint=True, **options)
    generation.read()
    return generation.token_ids, generation.text, generation.fingerprint.hexdigest()


def result(request, listener):
    answer = request.answer
    assert listener.text == answer.text
    return answer.token_ids, answer.text, answer.fingerprint.hexdigest()


def changes_no_bit(model):
    """Requests of all lengths that come and go between passes: tokens, text and fingerprint of each are its own."""
    cases = [
        dict(prompt_ids=prompt(i, length), max_tokens=tokens, temperature=temperature, seed=i)
        for i, (length, tokens, temperature) in enumerate(
            [(3, 20, 0.0), (70, 5, 1.0), (33, 30, 0.7), (1, 1, 0.0), (120, 12, 2.0), (64, 40, 0.0), (20, 9, 1.0)]
        )
    ]
    expected = [solo(model, **case) for case in cases]
    engine = Engine(model, max_running=4, shared_prefill=16)
    requests = []
    for case in cases:
        requests.append(submit(engine, **case))
        engine.step()
        engine.step()
    run(engine)
    assert [result(*request) for request in requests] == expected
    return engine
