"""The embedded tokenizer, which reads any text, and the words that a corpus never had."""

import pytest

from showtell.data import emoji, text
from showtell.errors import ShowtellError

SENTENCES = [
    "a red circle above a blue square",
    "一个红色的圆形在蓝色正方形的左边",
    "un círculo rojo a la izquierda",
] * 5


@pytest.fixture(scope="module")
def names():
    return [found[language] for found in emoji._all_names().values() for language in ("en", "zh", "es")]


@pytest.fixture(scope="module")
def tokenizer(names):
    return text.train_tokenizer(names, special=("<image>", "<Mask>"))


def test_ids(tokenizer):
    assert len(tokenizer) == 2048
    assert tokenizer.convert_tokens_to_ids(["<pad>", "<bos>", "<eos>", "<sep>", "<image>", "<Mask>"]) == list(range(6))
    assert (
        tokenizer.pad_token_id,
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.sep_token_id,
    ) == (0, 1, 2, 3)


def test_emoji_names_round_trip(tokenizer, names):
    encoded = tokenizer(names).input_ids
    assert tokenizer.batch_decode(encoded, skip_special_tokens=True) == [text.normalise(name) for name in names]
    assert max(map(max, encoded)) < 2048
    assert sum(map(len, encoded)) / len(encoded) < 12  # it has learnt words: these names have 24 bytes on average


@pytest.mark.parametrize(
    "line",
    [
        "",
        " ",
        "Any  TEXT,\n at all!",
        "Ａ ﬁne ½",
        "İstanbul ß ΣΑΣ",
        "ไทย עברית हिन्दी 한국어",
        "\x00\x7f\u200b",
        "👩🏽‍🌾🇳🇴",
        "a ' b . c",
        "don't",
    ],
)
def test_any_text_round_trips(tokenizer, line):
    assert tokenizer.decode(tokenizer.encode(line), skip_special_tokens=True) == text.normalise(line)
    assert text.normalise(text.normalise(line)) == text.normalise(line)


def test_normalise():
    assert text.normalise("  A\tRed\u3000ＡＰＰＬＥ\n") == "a red apple"


def test_control_tokens(tokenizer):
    plain = tokenizer("red apple", add_special_tokens=False).input_ids
    other = tokenizer("heart", add_special_tokens=False).input_ids
    assert tokenizer("red apple").input_ids == [1, *plain, 2]
    assert tokenizer("red apple", "heart").input_ids == [1, *plain, 3, *other, 2]
    assert tokenizer("a <image> b <Mask>").input_ids.count(4) == 1
    assert tokenizer("a <Mask>").input_ids[-2] == 5
    assert 2 not in tokenizer("<eos>", add_special_tokens=False, split_special_tokens=True).input_ids


def test_padding_goes_on_the_right(tokenizer):
    batch = tokenizer(["red apple", "red"], padding=True)
    assert batch.input_ids[1][-1] == 0 and batch.attention_mask[1][-1] == 0 and batch.attention_mask[1][0] == 1


def test_a_word_has_one_token_wherever_it_stands(tokenizer):
    (heart,) = tokenizer("heart", add_special_tokens=False).input_ids
    assert tokenizer("red heart", add_special_tokens=False).input_ids[-1] == heart


def test_the_same_corpus_gives_the_same_tokenizer(tokenizer, names):
    again = text.train_tokenizer(iter(names), special=("<image>", "<Mask>"))
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_saved_and_loaded(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    lines = ["A red <image> apple 红苹果", "x"]
    assert loaded(lines, padding=True).data == tokenizer(lines, padding=True).data
    assert loaded.decode(loaded.encode("Red  apple"), skip_special_tokens=True) == "red apple"


def test_a_small_corpus_gives_a_small_vocabulary():
    tokenizer = text.train_tokenizer(["red"] * 3, vocab_size=400)
    assert 260 < len(tokenizer) < 270
    assert tokenizer.decode(tokenizer.encode("blue 蓝"), skip_special_tokens=True) == "blue 蓝"


@pytest.mark.parametrize(
    ("corpus", "settings", "word"),
    [
        (SENTENCES, {"vocab_size": 259}, "260"),
        (SENTENCES, {"vocab_size": 260, "special": ["<image>"]}, "261"),
        (SENTENCES, {"special": ["<pad>"]}, "different"),
        (SENTENCES, {"special": ["<a>", "<a>"]}, "different"),
        (SENTENCES, {"special": [" "]}, "not empty"),
        ([], {}, "empty"),
        ("a red circle", {}, "one string"),
    ],
)
def test_wrong_arguments(corpus, settings, word):
    with pytest.raises(ShowtellError, match=word):
        text.train_tokenizer(corpus, **settings)


def test_words():
    assert text.words("The T-shirt’s RED, isn't it? 'quoted' -- T恤 n.º 8") == [
        "the", "t-shirt's", "red", "isn't", "it", "quoted", "t", "恤", "n", "o", "8",
    ]  # fmt: skip


def test_known_words():
    known = text.known_words(["A red T-shirt.", "a Red", "红苹果", "红苹果在桌子上", "dog's"])
    assert known == sorted(set(known))
    assert set(known) == {"a", "red", "T", "shirt", "T-shirt", "dog", "dog's", "红苹果", *"红苹果在桌子上"}


def test_words_are_written_as_they_mostly_are():
    known = text.known_words(["flag of Brazil", "the Cook Islands", "man cook", "woman cook", "Mrs. Claus"])
    forms = {word.lower(): word for word in known if word != word.lower()}
    assert forms == {"brazil": "Brazil", "islands": "Islands", "mrs": "Mrs", "claus": "Claus"}
    assert text.restore_case("flag of brazil, mrs. claus's cook 红", forms) == "flag of Brazil, Mrs. claus's cook 红"
    assert text.unknown_words("BRAZIL Peru", known) == ["peru"]


@pytest.mark.parametrize(
    ("line", "unknown"),
    [
        ("A RED circle, above!", []),
        ("a zebra above a purple zebra", ["zebra", "purple"]),
        ("the circle's", ["the"]),
        ("red-blue square", []),
        ("red-green square", ["red-green"]),
        ("un CÍRCULO verde", ["verde"]),
        ("un ci\u0301rculo", []),
        ("红色的正方形", []),
        ("红色的恐龙在蓝色的左边吗", ["恐龙", "吗"]),
        ("red 恐龙 zebra", ["恐龙", "zebra"]),
        ("?! ...", []),
        ("", []),
    ],
)
def test_unknown_words(line, unknown):
    assert text.unknown_words(line, text.known_words(SENTENCES)) == unknown


def test_chinese_words_are_matched_whole_when_the_list_has_no_single_characters():
    known = ["红色", "红", "正方形"]
    assert text.unknown_words("红色正方形", known) == []
    assert text.unknown_words("红正方", known) == ["正方"]
    assert text.unknown_words("蓝色红色方形", known) == ["蓝色", "方形"]
