import jax
import jax.numpy as jnp
import pytest

from finetune.training.flops import count_flops

X = jax.ShapeDtypeStruct((64, 64), jnp.float32)
PRODUCT = 2 * 64**3


def flops(function, *arguments):
    traced = jax.jit(function).trace(*arguments)
    lowered = traced.lower()
    return count_flops(traced, lowered, lowered.compile())


def repeated(turns):
    return lambda x: jax.lax.scan(lambda carry, _: (carry @ x, None), x, None, length=turns)[0]


@pytest.mark.slow
def test_every_turn_of_a_loop_counts():
    assert flops(repeated(7), X) == pytest.approx(7 * PRODUCT, rel=0.01)


@pytest.mark.slow
def test_loops_within_loops_and_in_gradients_count():
    inner = repeated(3)
    assert flops(lambda x: jax.lax.scan(lambda c, _: (inner(c), None), x, None, length=5)[0], X) == pytest.approx(
        15 * PRODUCT, rel=0.01
    )
    gradient = jax.grad(lambda x: repeated(4)(x).sum())
    assert flops(gradient, X) == pytest.approx(3 * 4 * PRODUCT, rel=0.05)


@pytest.mark.slow
def test_a_program_without_loops_is_counted_as_xla_does():
    assert flops(lambda x: x @ x, X) == PRODUCT
