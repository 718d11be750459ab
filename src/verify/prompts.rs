//! Beginnings of texts that a model is to go on with.

/// Kind of text and its beginning.
pub(super) const PROMPTS: [(&str, &str); 12] = [
    ("encyclopedia", "The Danube is the second-longest river in Europe. It rises in"),
    (
        "news",
        "LISBON - The city council voted on Tuesday to close the old harbour road to cars, after residents",
    ),
    ("story", "When Marta opened the door of the lighthouse, the lamp was still burning, but the keeper"),
    ("dialogue", "\"You promised to be home before dark,\" said her father.\n\"I know,\" she answered, \""),
    ("instructions", "How to repair a flat bicycle tyre:\n1. Turn the bicycle upside down.\n2."),
    ("recipe", "Tomato soup for four people\n\nIngredients:\n- 1 kg of ripe tomatoes\n- 2 onions\n-"),
    ("science", "Water boils at a lower temperature on a mountain than at sea level, because"),
    ("code", "def mean(values):\n    \"\"\"Return the arithmetic mean of a list of numbers.\"\"\"\n"),
    (
        "manual",
        "The configuration file is read once, when the server starts. Each line holds a key and a value, and",
    ),
    ("letter", "Dear Ms Okafor,\n\nThank you for your letter of 3 May. I am sorry to hear that"),
    ("history", "In the autumn of 1848 the railway had reached the town, and within a year"),
    ("question", "Question: Why do leaves change their colour in autumn?\nAnswer:"),
];
