"""A small SentencePiece tokenizer, trained on the spot on a few sentences, such as those below."""

from __future__ import annotations

import io
from collections.abc import Sequence

import sentencepiece

from model_repository.errors import BuildError

SENTENCES = tuple(
    """
You are a friendly and helpful assistant. Answer questions in a clear and engaging way.
You work for a small bank and your name is Anna. Help the customer with the account and the card.
You work for a doctor. Ask for the name of the caller, the date of birth and the reason for the call.
You are a patient teacher who explains hard things with simple words and good examples.
You are an expert. Give short, precise answers and say so when you do not know something.
You enjoy a good conversation about travel, music, food, films, books and the weather.
Keep the conversation focused. Speak warmly, listen closely, and let the other person finish.
Hello, thank you for calling. How can I help you today? What can I do for you this morning?
Good morning! It is a pleasure to talk to you. Tell me more about that, please.
I see. Let me check that for you. One moment, please. Yes, that is right. No, I am afraid not.
The office is open from nine in the morning until five in the afternoon, Monday to Friday.
I would like to make an appointment for next week. Is Tuesday at half past ten all right?
Your order was sent yesterday and should be with you by the end of the week.
Could you spell your last name for me? And what is the best number to reach you?
The train leaves at seven, so we should be there before eight, if the weather holds.
Where did you grow up? Do you have brothers or sisters? What did you want to be as a child?
That sounds wonderful. I have always wanted to see the mountains in the early spring.
It depends on what you need. We have three plans: basic, family and business.
Please do not worry, this happens all the time, and it is easy to put right.
Let us go through it together, step by step. First, open the settings. Then choose the language.
She sells fresh bread, fruit and flowers on the market near the old bridge every Saturday.
If you mix blue and yellow you get green; if you mix red and white you get pink.
The moon goes around the earth in about twenty-seven days, and the earth around the sun in a year.
Fifteen people came to the meeting, but only four of them had read the report.
My favourite season is autumn, because the light is soft and the leaves turn gold and brown.
Is there anything else I can do for you? Thank you very much, and have a nice day. Goodbye!
<system> You are a wise teacher. <system> You work for a repair service. <system> Be kind and direct. <system>
Numbers such as 0, 1, 2, 3, 4, 5, 6, 7, 8 and 9; signs such as $ % & * + / = @ # ( ) [ ] ' " - _ : ; , . ! ?
The quick brown fox jumps over the lazy dog. JACKDAWS LOVE MY BIG SPHINX OF QUARTZ.
""".strip().splitlines()
)


def train_tiny_tokenizer(pieces: int, sentences: Sequence[str] = SENTENCES) -> bytes:
    """A serialized SentencePiece model of exactly `pieces` pieces: 0 `<unk>`, 1 `<s>`, 2 `</s>`, 3 `<pad>`, then BPE.

    `<system>` is ordinary text, as in the published tokenizer. The same number gives the same bytes. Raises
    `BuildError` for a number that so little text cannot fill.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="bpe",
            vocab_size=pieces,
            character_coverage=1.0,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise BuildError(f"the tiny tokenizer cannot have {pieces} pieces: {reason}") from error
    return model.getvalue()
