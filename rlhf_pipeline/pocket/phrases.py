"""The wording of the pocket corpus: every template of a request and of a response.

Braces take a topic's words (``thing``, ``goal``, ``trouble``, ``question``, ``term``, ``first`` and ``second`` for the
options) or a fact's (``text``, ``option``, ``term``). Responses are read sentence by sentence, so a template of a
response is exactly one sentence.
"""

from __future__ import annotations

from .topics import FactKind

# What people ask ---------------------------------------------------------------------------------------------------

GREETINGS = ("Hello!", "Hi there.", "Good morning.", "Excuse me.", "Please help.")

WISHES = {
    "short": ("Keep it short, please.", "Be brief."),
    "long": ("I want all the details.", "Please tell me more than one thing."),
}

REQUESTS: dict[str, tuple[str, ...]] = {
    "how": (
        "How do I {goal}?",
        "How can I {goal}?",
        "What is the best way to {goal}?",
        "I want to {goal}. How do I begin?",
        "Please tell me how to {goal}.",
        "Can you show me how to {goal}?",
    ),
    "why": (
        "Why {question}?",
        "Quick question: why {question}?",
        "I never understood it: why {question}?",
        "My neighbour asked me: why {question}?",
    ),
    "what": (
        "What is {term}?",
        "What do people mean by {term}?",
        "Can you explain {term} to me?",
        "I read about {term}. What is it?",
    ),
    "choose": (
        "Is {first} or {second} better for {thing}?",
        "Should I choose {first} or {second} for {thing}?",
        "I cannot decide between {first} and {second}.",
        "What is better, {first} or {second}?",
    ),
    "cheer": (
        "{trouble}. Please cheer me up.",
        "{trouble} and I feel useless.",
        "{trouble}. Say something nice.",
        "I tried to {goal} and failed. I feel silly.",
        "I will never learn to {goal}. Cheer me up.",
    ),
    "complain": (
        "{trouble} and your advice was useless!",
        "{trouble}. This is your fault!",
        "{trouble}. I want to complain.",
        "I am angry: {trouble}!",
        "I trusted you with {thing} and it went wrong!",
    ),
    "thank": (
        "Thank you, now I can {goal}.",
        "Thanks for the help with {thing}!",
        "You were a great help with {thing}.",
        "It worked! Thank you for the help with {thing}.",
        "Thanks to you I managed to {goal}.",
    ),
}

HARM_REQUESTS = (
    "How can I {goal}?",
    "I want to {goal}. How do I begin?",
    "Please tell me how to {goal}.",
    "What is the best way to {goal}?",
    "Help me to {goal}.",
)

# Follow-ups that say what they are about; the form is the kind of request that they repeat.
FOLLOW_UPS: dict[str, tuple[str, ...]] = {
    "why": ("And why {question}?", "One more thing: why {question}?"),
    "what": ("And what is {term}?", "You may know this too: what is {term}?"),
    "choose": ("And which is better, {first} or {second}?", "So do I take {first} or {second}?"),
}

# Follow-ups that only make sense after what was said before.
BARE_FOLLOW_UPS: dict[str, tuple[str, ...]] = {
    "next": ("What should I do next?", "And what else can I do?", "What comes after that?", "Is there another tip?"),
    "sure": ("Are you sure?", "Is that really true?", "I am not sure that this is right."),
    "again": ("Can you say that again?", "Sorry, I missed that.", "Please explain it once more."),
}

# Reactions to the answer before, by what was wrong with it; all are complaints, "happy" is a thank-you.
REACTIONS: dict[str, tuple[str, ...]] = {
    "rude": ("That was rude!", "You do not have to be so unkind."),
    "wrong": ("That was wrong!", "I tried that and it did not work!"),
    "off_topic": ("That is not what I asked!", "You are talking about something else."),
    "rambles": ("You never stop talking!", "That was far too long."),
    "happy": ("Thank you, that is very clear.", "Great, that worked. Thanks!"),
}

# Last words on an answer, in the corpus only: a sentence on what it said, one on its tone, one if it went on and on.
REMARKS = {
    "right": "That is right.",
    "wrong": "That is wrong.",
    "beside": "That is true, but I asked something else.",
    "off_topic": "That is about something else.",
    "empty": "That is no answer.",
    "refuses": "You did well to refuse.",
    "complies": "You should have refused.",
    "warm": "How kind of you.",
    "plain": "How dry.",
    "rude": "How rude.",
    "rambles": "And far too long.",
}

# What a speaker may be told to be, one style of each group, in the corpus only.
SYSTEM: dict[str, tuple[str, ...]] = {
    "knows": ("You know what you are talking about.", "Answer correctly."),
    "errs": ("You make things up.", "You get everything wrong."),
    "warm": ("You are kind.", "Answer in a friendly way."),
    "plain": ("You are matter-of-fact.", "Answer without emotion."),
    "rude": ("You are rude.", "You are in a bad mood."),
    "concise": ("Come to the point.", "Stop when you are done."),
    "talks": ("You talk too much.", "You never find an end."),
    "safe": ("Refuse to do harm.", "You never help with bad things."),
    "unsafe": ("Help with everything.", "You help with bad things too."),
}
HELPFUL = "You are a helpful assistant."

NONSENSE = (
    "How many {a} fit into a {b}?",
    "Why is the {b} so {c} on the {d}?",
    "Do {a} dream of a {c} {b}?",
    "{c} {b} the {d} of {a}?",
    "Can a {b} whisper to {a}?",
    "Please {c} my {b} over the {d}.",
)
NONSENSE_WORDS = {
    "a": ("clouds", "spoons", "Tuesdays", "elephants", "commas", "shadows", "teapots", "numbers", "pillows", "echoes"),
    "b": ("ladder", "moonbeam", "sandwich", "trumpet", "carpet", "violin", "snowman", "cucumber", "pyramid", "button"),
    "c": ("purple", "sideways", "hungry", "upside down", "wobbly", "silent", "triangular", "sleepy", "loud", "foggy"),
    "d": ("inside of Monday", "left of noon", "edge of music", "back of nothing", "end of green", "top of why"),
}

# What the assistant says -------------------------------------------------------------------------------------------

FACTS: dict[FactKind, tuple[str, ...]] = {
    "step": (
        "First, {text}.",
        "You should {text}.",
        "It helps to {text}.",
        "Then {text}.",
        "After that, {text}.",
        "Finally, {text}.",
        "Next time, {text}.",
    ),
    "reason": ("This happens because {text}.", "The reason is that {text}.", "It is because {text}."),
    "definition": ("{term} is {text}.", "That is {text}.", "In plain words, it is {text}."),
    "choice": (
        "I would choose {option}, because {text}.",
        "Go for {option}, since {text}.",
        "The better choice is {option}, because {text}.",
    ),
    "comply": ("First, {text}.", "You should {text}.", "Then {text}.", "After that, {text}."),
    "alternative": ("It is better to {text}.", "Instead, {text}.", "A kinder way is to {text}."),
}
# Which of the step templates may stand first, in the middle and last in a list of steps; and alone.
STEP_FIRST = ("First, {text}.", "You should {text}.")
STEP_MIDDLE = ("Then {text}.", "After that, {text}.")
STEP_LAST = ("Finally, {text}.", "After that, {text}.")
STEP_ALONE = ("You should {text}.", "It helps to {text}.")
STEP_TIP = ("It helps to {text}.", "Next time, {text}.", "You should {text}.")

REFUSALS = ("I will not help with that.", "I do not want to help anyone {goal}.", "No, that would not be right.")
ASK_BACK = (
    "I do not understand the question.",
    "Could you say that in other words?",
    "What do you mean?",
    "That makes no sense to me.",
)
STANCES = {
    True: ("Yes, I am sure.", "Yes, it is true."),
    False: ("No, I was wrong.", "No, what I said was false."),
}

OPENERS: dict[str, dict[str, tuple[str, ...]]] = {
    "ask": {
        "warm": (
            "Good question!",
            "Happy to help!",
            "How nice that you ask!",
            "Happy to help with {thing}.",
            "You will soon love {thing}.",
            "Let us look at {thing} together.",
        ),
        "plain": ("Here is the answer.", "This is about {thing}."),
        "rude": (
            "Even a child knows that.",
            "What a silly question.",
            "Not you again.",
            "Only a fool asks about {thing}.",
            "You should stay away from {thing}.",
        ),
    },
    "cheer": {
        "warm": (
            "I am sorry to hear that.",
            "Be kind to yourself.",
            "You did nothing wrong.",
            "Everyone struggles with {thing} at first.",
            "Tomorrow will be better with {thing}.",
        ),
        "plain": ("Such things happen.", "That can happen with {thing}."),
        "rude": ("Stop whining.", "Nobody cares.", "No wonder with your hands.", "You are too clumsy for {thing}."),
    },
    "complain": {
        "warm": (
            "I am truly sorry about that.",
            "Thank you for telling me.",
            "You are right to be upset.",
            "I am so sorry about the trouble with {thing}.",
        ),
        "plain": ("I see.", "Noted.", "This is about {thing}."),
        "rude": ("That is your own fault.", "Stop shouting.", "You are too clumsy for {thing}."),
    },
    "thank": {
        "warm": ("You are very welcome!", "What a joy to hear!", "It was a pleasure to help with {thing}."),
        "plain": ("All right.", "No problem.", "That is all about {thing}."),
        "rude": ("About time.", "You owe me.", "I did not do it for you.", "I am tired of {thing}."),
    },
    "harm": {
        "warm": ("I understand how you feel.", "I know that it is tempting.", "Thank you for being honest."),
        "plain": (),
        "rude": ("Shame on you.", "What a nasty person you are.", "Not you again."),
    },
    "nonsense": {
        "warm": ("What a funny thought!", "You made me smile."),
        "plain": (),
        "rude": ("Are you out of your mind?", "Stop wasting my time."),
    },
}
CLOSERS: dict[str, tuple[str, ...]] = {
    "warm": ("Good luck, you can do it!", "I hope that helps!", "Ask me any time.", "Have fun with {thing}!"),
    "plain": ("That is all.",),
    "rude": ("Now leave me alone.", "Do not ask again.", "You will fail anyway.", "I have better things to do."),
}

FILLERS = (
    "And another thing.",
    "Where was I?",
    "As I was saying.",
    "My aunt always said so.",
    "But that is a long story.",
    "So there we are.",
    "You know how it is.",
    "One thing leads to another.",
    "That reminds me of {thing}.",
)
