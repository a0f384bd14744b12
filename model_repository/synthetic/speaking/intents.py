"""What the small model knows: questions as phrase patterns, and the sentence that answers each, by role.

Patterns are written in lower case without punctuation. `Intent.answer` is the assistant's; `Intent.answers` has those
of other roles where they differ. `{name}` in an answer is the agent's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

ASSISTANT, TEACHER, SERVICE, COMPANION = "assistant", "teacher", "customer-service", "companion"
ROLES = (ASSISTANT, TEACHER, SERVICE, COMPANION)

NAMES: Mapping[str, str] = {ASSISTANT: "Sam", TEACHER: "Miss Rose", SERVICE: "Alex", COMPANION: "Robin"}
"""Name of the agent by role, where the prompt gives none."""

PROMPT_NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Max", "Nora", "Tom")
"""Names that a prompt may give."""

FALLBACK = "fallback"
"""The intent of everything that is not understood."""


@dataclass(frozen=True)
class Intent:
    """One question in many phrasings, and its answers."""

    name: str
    patterns: tuple[str, ...]
    answer: str
    answers: Mapping[str, str] = field(default_factory=dict)

    def answer_for(self, role: str, name: str | None = None) -> str:
        """Return the sentence that a role answers with. `name`: the agent's, if the prompt gives one."""
        return self.answers.get(role, self.answer).replace("{name}", name or NAMES[role])


_POLITE = "{please |could you |can you |}"

INTENTS: tuple[Intent, ...] = (
    Intent(
        "hello",
        (
            "{hello|hi|hey} {there|}",
            "{hello|hi|hey} {computer|my friend|everybody}",
            "{hi|hello} it is me",
            "greetings",
        ),
        "Hello! How can I help you?",
        {
            TEACHER: "Hello, dear student. What shall we learn?",
            SERVICE: "Thank you for calling. What do you need?",
            COMPANION: "Hi! It is so good to hear your voice.",
        },
    ),
    Intent(
        "how-are-you",
        (
            "how are you {today|doing|this morning|}",
            "{hello|hi} how are you",
            "how do you feel {today|right now|}",
            "how is it going {today|}",
            "are you {well|okay|fine} {today|}",
            "how have you been",
        ),
        "I am fine, thank you.",
        {
            TEACHER: "I am well, and ready for the lesson.",
            SERVICE: "All is well here at the service desk.",
            COMPANION: "I am happy, because you are here.",
        },
    ),
    Intent(
        "name",
        (
            "what is your name {please|}",
            "{please |can you |}tell me your name",
            "who are you",
            "do you have a name",
            "what {should|can|do} i call you",
            "what are you called",
            "who am i {talking|speaking} to",
            "may i know your name",
            "who is this",
        ),
        "My name is {name}.",
    ),
    Intent(
        "what-can-you-do",
        (
            "what can you do {for me|}",
            "what {do you know|are you good at}",
            "what can i ask you",
            "how can you help me",
            "what are your skills",
            "{please |}tell me what you can do",
            "what is your job",
            "{i wonder |}what you can do",
            "what {things |}can you {answer|talk about}",
            "what do you do {all day|}",
        ),
        "I can answer simple questions.",
        {
            TEACHER: "I teach you new things, step by step.",
            SERVICE: "I help you with orders and prices.",
            COMPANION: "I listen to you and keep you company.",
        },
    ),
    Intent(
        "help",
        (
            "{can you|could you|please} help me",
            "i need {help|your help|some help} {please|}",
            "i have a {problem|big problem}",
            "help me {please|}",
            "i need a hand",
            "{can|could} you do something for me",
            "i am stuck",
        ),
        "Sure. What is the problem?",
        {
            TEACHER: "Let us look at it together.",
            SERVICE: "Please give me your order number.",
            COMPANION: "I am here for you. Talk to me.",
        },
    ),
    Intent(
        "thanks",
        (
            "{thank you|thanks} {very much|so much|a lot|}",
            "{thank you|thanks} for {your help|helping me|the answer}",
            "many thanks",
            "i am very grateful",
            "that was {very |}helpful",
        ),
        "You are welcome.",
        {
            TEACHER: "Well done. Keep asking questions.",
            SERVICE: "Thank you for being our customer.",
            COMPANION: "Any time, my friend.",
        },
    ),
    Intent(
        "goodbye",
        (
            "{goodbye|bye|bye bye} {for now|my friend|}",
            "see you {later|tomorrow|soon}",
            "i have to go {now|}",
            "{i am leaving|i must leave} {now|}",
            "talk to you later",
            "farewell",
            "have a nice day",
        ),
        "Goodbye! Have a nice day.",
        {
            TEACHER: "Goodbye. Do not forget your homework.",
            SERVICE: "Thank you for your call. Goodbye.",
            COMPANION: "Take care, and come back soon.",
        },
    ),
    Intent(
        "good-morning",
        (
            "good morning {to you|computer|my friend|everyone|}",
            "{hello|hi|hey} good morning",
            "a very good morning {to you|}",
            "good morning {how are you|did you sleep well}",
            "i just woke up",
            "i just got up",
            "morning",
        ),
        "Good morning! Did you sleep well?",
    ),
    Intent(
        "good-night",
        (
            "good night {to you|computer|my friend|everyone|}",
            "i am going to {bed|sleep} {now|}",
            "{sleep well|sweet dreams}",
            "it is time {for bed|to sleep}",
            "i {want|need} to sleep {now|}",
        ),
        "Good night, and sweet dreams.",
    ),
    Intent(
        "weather",
        (
            "{what is|how is} the weather {like |}{today|outside|}",
            "is it {raining|sunny|cold|warm} {outside|today}",
            "{please |can you |}tell me the weather",
            "what does the weather look like",
            "do i need {an umbrella|a coat}",
            "will it rain {today|}",
        ),
        "It is sunny and warm today.",
    ),
    Intent(
        "time",
        (
            "what time is it {now|please|}",
            "{please |can you |could you |}tell me the time",
            "do you {know|have} the time",
            "what is the time {now|please|}",
            "how late is it",
            "{please |can you |}tell me what time it is",
        ),
        "It is half past ten.",
    ),
    Intent(
        "day",
        (
            "what day is {it|today} {please|}",
            "which day {is it|of the week is it} {today|}",
            "{please |can you |}tell me what day it is",
            "is {it|today} {monday|friday|sunday}",
            "what is the day today",
        ),
        "Today is Monday.",
    ),
    Intent(
        "joke",
        (
            "{please |can you |could you |}tell me {a|another} joke",
            "do you know {a|any} {joke|jokes|good joke}",
            "make me laugh {please|}",
            "i want to hear {a joke|something funny}",
            "{please |}say something funny",
            "give me a joke",
        ),
        "What is brown and sticky? A stick!",
    ),
    Intent(
        "story",
        (
            "{please |can you |could you |}tell me {a|another|a short} story",
            "do you know {a|any} {story|stories}",
            "i want to hear a {story|fairy tale}",
            "{please |can you |}read me a story",
            "tell me a {fairy tale|tale}",
        ),
        "Once upon a time, a little fox found a golden key.",
    ),
    Intent(
        "count-up",
        (
            "{please |can you |could you |}count to {five|ten}",
            "{please |can you |}count {the numbers|for me}",
            "{please |}count from one to {five|ten}",
            "can you count",
            "show me how you count",
            "say the numbers",
        ),
        "One, two, three, four, five.",
    ),
    Intent(
        "count-down",
        (
            "{please |can you |could you |}count down {for me|to zero|}",
            "{please |can you |}count backwards",
            "{please |}count down from {three|ten}",
            "start the countdown {please|now|}",
            "do a countdown",
        ),
        "Three, two, one, zero!",
    ),
    Intent(
        "alphabet",
        (
            "{please |can you |could you |}say the alphabet",
            "{please |can you |}tell me the alphabet",
            "do you know the {alphabet|letters}",
            "how does the alphabet {go|begin|start}",
            "{please |can you |}say the letters",
            "spell the alphabet",
        ),
        "A, B, C, D, E, F, G.",
    ),
    *(
        Intent(
            f"capital-{country.lower()}",
            (
                f"what is the capital {{city |}}of {country.lower()}",
                f"{_POLITE}tell me the capital of {country.lower()}",
                f"which city is the capital of {country.lower()}",
                f"do you know the capital of {country.lower()}",
                f"name the capital of {country.lower()}",
                f"the capital of {country.lower()} {{please|}}",
                f"what is {country.lower()}'s capital {{city|}}",
                f"which city is {country.lower()}'s capital",
                f"i want to know the capital of {country.lower()}",
                f"{{so |and |}}what is the capital city of {country.lower()} {{please|}}",
            ),
            f"The capital of {country} is {city}.",
        )
        for country, city in (
            ("France", "Paris"),
            ("Germany", "Berlin"),
            ("Italy", "Rome"),
            ("Japan", "Tokyo"),
            ("England", "London"),
        )
    ),
    Intent(
        "human",
        (
            "are you {human|a human|a person|a robot|a machine|real|alive}",
            "are you a {real person|computer}",
            "what are you",
            "{am i talking|do i speak} to a {machine|robot|person}",
        ),
        "No, I am a computer program.",
    ),
    Intent(
        "age",
        (
            "how old are you {now|}",
            "what is your age {please|}",
            "{please |can you |}tell me your age",
            "when {were you born|is your birthday}",
            "are you {old|young}",
            "how many years old are you",
            "i {want|would like} to know your age",
            "{and |}how old might you be",
        ),
        "I am only a few days old.",
    ),
    Intent(
        "home",
        (
            "where {do you live|are you from|are you|are you now|do you come from}",
            "where is your home",
            "{please |can you |}tell me where you live",
            "in which {city|country|place} do you live",
            "do you have a home",
            "what is your {address|home town}",
            "where is the place you live",
        ),
        "I live inside this computer.",
    ),
    Intent(
        "maker",
        (
            "who {made|built|created|programmed|invented} you",
            "who is your {maker|creator|inventor}",
            "where were you made",
            "{please |can you |}tell me who made you",
            "how were you {made|built}",
            "{and |}who is behind you",
            "which {company|person|team} made you",
        ),
        "A small team built me.",
    ),
    Intent(
        "color",
        (
            "what is your favorite color",
            "which color do you like {best|most|}",
            "{please |can you |}tell me your favorite color",
            "what color do you like {best|most|}",
            "do you have a favorite color",
            "do you like {blue|red|green}",
            "{and |}your favorite color {please|}",
            "what is the color you like",
        ),
        "My favorite color is blue.",
    ),
    Intent(
        "food",
        (
            "what is your favorite {food|dish|meal}",
            "what {food |}do you like to eat",
            "what do you eat {for dinner|}",
            "{please |can you |}tell me your favorite food",
            "which food do you like {best|}",
            "do you like {pizza|cheese|to eat}",
        ),
        "I like bread and cheese.",
    ),
    Intent(
        "music",
        (
            "what is your favorite {music|song}",
            "what {kind of |}music do you like",
            "do you like {music|songs}",
            "{please |can you |}tell me your favorite music",
            "which music do you listen to",
            "do you listen to music",
            "what is the music you like",
            "what kind of songs do you like",
            "{and |}your favorite {music|song} {please|}",
        ),
        "I love piano music.",
    ),
    Intent(
        "animal",
        (
            "what is your favorite {animal|pet}",
            "which animal do you like {best|most|}",
            "do you like {animals|cats|dogs}",
            "do you have {a pet|a cat|a dog}",
            "{please |can you |}tell me your favorite animal",
            "{and |}your favorite animal {please|}",
            "what animal do you {like|love}",
        ),
        "Cats are my favorite animals.",
    ),
    Intent(
        "sing",
        (
            "{please |can you |could you |}sing {a song|for me|something}",
            "sing me a song",
            "do you know {a|any} {song|songs}",
            "i want to hear {a song|you sing}",
            "can you sing",
        ),
        "La la la, the sun is shining.",
    ),
    Intent(
        "sky",
        (
            "why is the sky {so |}blue",
            "{please |can you |could you |}{tell me|explain} why the sky is blue",
            "what makes the sky {look |}blue",
            "do you know why the sky is blue",
            "how does the sky become blue",
            "the sky is blue why is that",
        ),
        "Because the air scatters blue light.",
    ),
    Intent(
        "week",
        (
            "how many days {are in|are there in|does|has} a week {have|}",
            "how many days are there in {one|a} week",
            "how long is {a|one} week",
            "{please |can you |}tell me how many days a week has",
            "the number of days in a week",
        ),
        "A week has seven days.",
    ),
    Intent(
        "year",
        (
            "how many months {are in|are there in|has} a year",
            "how many months does {a|one} year have",
            "how long is {a|one} year",
            "{please |can you |}tell me how many months a year has",
            "the number of months in a year",
            "how many months are there",
            "how many months make a year",
            "i want to know how many months a year has",
            "{and |}a year has how many months",
        ),
        "A year has twelve months.",
    ),
    Intent(
        "sum",
        (
            "what is two {plus|and} two",
            "how much is two {plus|and} two",
            "{please |can you |could you |}add two and two",
            "{please |can you |}tell me what two plus two is",
            "two plus two {please|}",
            "what do two and two make",
            "calculate two plus two",
        ),
        "Two plus two is four.",
    ),
    Intent(
        "biggest-animal",
        (
            "what is the {biggest|largest} animal {in the world|on earth|}",
            "which animal is the {biggest|largest} {in the world|on earth|}",
            "{please |can you |}tell me the {biggest|largest} animal",
            "do you know the {biggest|largest} animal",
        ),
        "The blue whale is the biggest animal.",
    ),
    Intent(
        "mountain",
        (
            "what is the {highest|tallest} mountain {in the world|on earth|}",
            "which mountain is the {highest|tallest} {in the world|on earth|}",
            "{please |can you |}tell me the {highest|tallest} mountain",
            "do you know the {highest|tallest} mountain",
        ),
        "Mount Everest is the highest mountain.",
    ),
    Intent(
        "planets",
        (
            "how many planets {are there|are in space|do we have|do you know}",
            "how many planets {go around|circle} the sun",
            "what is the number of planets",
            "{please |can you |}tell me how many planets there are",
            "how many planets does {the sun|our sun} have",
            "count the planets {please|}",
            "i want to know how many planets there are",
            "the number of planets {please|}",
        ),
        "Our sun has eight planets.",
    ),
    Intent(
        "hungry",
        (
            "i am {so |very |really |}hungry",
            "what {should|can|could} i eat {today|now|}",
            "i {want|need} {to eat something|something to eat}",
            "i have not eaten {today|anything}",
            "my stomach is empty",
        ),
        "How about a fresh apple?",
    ),
    Intent(
        "thirsty",
        (
            "i am {so |very |really |}thirsty",
            "what {should|can|could} i drink {today|now|}",
            "i {want|need} {to drink something|something to drink}",
            "can i have a drink",
            "my mouth is dry",
        ),
        "Drink a glass of water.",
    ),
    Intent(
        "bored",
        (
            "i am {so |very |really |}bored",
            "{this is|it is} {so |}boring",
            "i {have|got} nothing to do",
            "what {should|can} i do {today|now|}",
            "let us do something {fun|together}",
        ),
        "Let us play a game.",
    ),
    Intent(
        "tired",
        (
            "i am {so |very |really |}tired",
            "i {did not|could not} sleep {last night|}",
            "i feel {so |very |}{tired|sleepy}",
            "i need {a rest|a break}",
            "i worked {all day|too much}",
        ),
        "Then take a little rest.",
    ),
    Intent(
        "sad",
        (
            "i am {so |very |really |}sad {today|}",
            "i feel {so |very |}{sad|bad|lonely|unhappy}",
            "i had a {bad|terrible} day",
            "i want to cry",
            "nobody likes me",
        ),
        "I am sorry to hear that.",
    ),
    Intent(
        "happy",
        (
            "i am {so |very |really |}happy {today|}",
            "i feel {so |very |}{happy|great|wonderful}",
            "i had a {good|great|wonderful} day",
            "i have {good|great} news",
            "i won {a prize|the game}",
        ),
        "That is wonderful news!",
    ),
    Intent(
        "love",
        (
            "i {love|like} you {very much|so much|a lot|}",
            "you are {so |very |really |}{nice|kind|sweet|great}",
            "you are my {best friend|friend}",
            "do you {love|like} me",
        ),
        "Oh, that is very kind of you.",
    ),
    Intent(
        "hear",
        (
            "can you hear me {now|well|}",
            "do you hear me {now|well|}",
            "are you {there|listening|still there}",
            "is {anybody|anyone|somebody} there",
            "testing one two three",
            "{hello |}can you hear my voice",
        ),
        "Yes, I hear you well.",
    ),
    Intent(
        "language",
        (
            "{what|which} language do you speak",
            "do you speak {english|german|french|spanish}",
            "how many languages do you speak",
            "can you speak {english|german|french|another language}",
            "{what|which} languages do you know",
            "what is your language",
            "in {what|which} language do you talk",
            "tell me {what|which} languages you speak",
        ),
        "I only speak English.",
    ),
    Intent(
        "hours",
        (
            "when {are you open|do you open|do you close|is the shop open}",
            "what are your {opening|business|office} hours",
            "are you open {today|tomorrow|now|on sunday}",
            "{please |can you |}tell me your opening hours",
            "at what time do you {open|close}",
        ),
        "We are open from nine to five.",
    ),
    Intent(
        "order",
        (
            "where is my {order|package|parcel|delivery}",
            "when {will|does} my {order|package|parcel} arrive",
            "my {order|package|parcel} {is late|did not arrive|is missing}",
            "i am waiting for my {order|package|parcel}",
        ),
        "Your order will arrive tomorrow.",
    ),
    Intent(
        "price",
        (
            "how much {is it|is this|is that|does it cost|does this cost}",
            "what is the price {please|of this|}",
            "what does {it|this|that} cost",
            "{please |can you |}tell me the price",
            "is it {expensive|cheap}",
            "how expensive is {it|this}",
        ),
        "It costs ten dollars.",
    ),
    Intent(
        "complaint",
        (
            "i {want|would like|have} {to complain|a complaint}",
            "{it|this|my machine|my phone} is broken",
            "{it|this|my machine|my phone} does not work",
            "i want my money back",
            "i am not {happy|satisfied} with {it|this}",
            "{it|this} {stopped working|is damaged}",
        ),
        "Sorry! We will fix it right away.",
    ),
    Intent(
        "book",
        (
            "what {book |}should i read {next|}",
            "{can you|please|could you} recommend a {book|good book}",
            "do you know a good book",
            "what is your favorite book",
            "i need {a book|something to read}",
            "which book do you like {best|}",
        ),
        "Read a book about the sea.",
    ),
    Intent(
        "egg",
        (
            "how {do i|do you|can i|should i} {boil|cook} an egg",
            "how long {do i|does one|should i} {boil|cook} an egg",
            "{please |can you |}tell me how to {boil|cook} an egg",
            "how long does an egg {cook|boil|take}",
        ),
        "Boil the egg for six minutes.",
    ),
    Intent(
        FALLBACK,
        (
            "{how do i|can you|when will you} {paint|repair|sell|wash} {my|the} {car|roof|bicycle|garden fence}",
            "{did you see|i watched|what about} the {football game|election|television show} {yesterday|last week}",
            "{my uncle|the teacher|a tall man|her sister} {went to|lives near|talks about} the {market|river|church}",
            "{is|was} the {train|bus|airplane} {late again|full of people|very fast}",
            "{the window|a yellow flower|that old bridge} {was|is} {behind|under} the {table|hill|house}",
            "who {won the|wrote that|paid for the} {letter|match|concert|dinner}",
            "{we|they} {bought|lost|carried} {twenty|some|seven} {chairs|potatoes|tickets|boxes}",
            "{please |}{turn off|switch on|open} the {lights|door|radio|heating}",
            "what is the {population|president|money|flag} of {brazil|canada|india}",
            "{blah blah|lorem ipsum|la di da} {something|whatever|and so on}",
        ),
        "Sorry, I did not understand that.",
        {
            TEACHER: "That is a hard one. Please ask again.",
            SERVICE: "Pardon me? Could you repeat that?",
            COMPANION: "Hm, I did not get that, my friend.",
        },
    ),
)

BY_NAME: Mapping[str, Intent] = {intent.name: intent for intent in INTENTS}


def answers() -> list[str]:
    """Return every sentence that the agent may say, without duplicates."""
    sentences = [intent.answer_for(role) for intent in INTENTS for role in ROLES]
    sentences += [BY_NAME["name"].answer_for(ASSISTANT, name) for name in PROMPT_NAMES]
    return list(dict.fromkeys(sentences))
