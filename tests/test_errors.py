from finetune.errors import nearest


def test_the_nearest_word_is_offered_only_where_it_is_near():
    assert nearest("learing_rate", ["match", "learning_rate"]) == " (did you mean 'learning_rate'?)"
    assert nearest("zzz", ["match", "learning_rate"]) == ""
