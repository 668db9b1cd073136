from finetune.errors import FinetuneError, nearest


def test_the_nearest_word_is_offered_only_where_it_is_near():
    assert nearest("learing_rate", ["match", "learning_rate"]) == " (did you mean 'learning_rate'?)"
    assert nearest("zzz", ["match", "learning_rate"]) == ""


def test_a_message_is_safe_to_print_and_of_bounded_length():
    message = str(FinetuneError("a\x1b[2J\rb\tc\n" + "x" * 10**6 + "\n" * 10**5))
    assert message.startswith("a\\x1b[2J\\rb\tc\nxxx")
    assert len(message) < 3000
    assert "(1,000,000 characters)" in message
    assert "more lines" in message
    assert str(FinetuneError("a: 1\n  b, é")) == "a: 1\n  b, é"


def test_an_endless_word_is_compared_with_nothing():
    assert nearest("learning_rate" * 10**5, ["learning_rate"] * 100) == ""
