"""Politicians of the United States and the party they stand for, as everybody knows them."""

from __future__ import annotations

DEMOCRATS: tuple[str, ...] = (
    "Barack Obama", "Joe Biden", "Hillary Clinton", "Bill Clinton", "Nancy Pelosi", "Al Gore",
    "John Kerry", "Harry Reid", "Elizabeth Warren", "Kamala Harris", "Chuck Schumer",
    "Dianne Feinstein", "Barbara Boxer", "Dick Durbin", "Patrick Leahy", "Patty Murray",
    "Ron Wyden", "Sherrod Brown", "Cory Booker", "Kirsten Gillibrand", "Tim Kaine", "Mark Warner",
    "Amy Klobuchar", "Al Franken", "Tammy Baldwin", "Jerry Brown", "Andrew Cuomo", "Gavin Newsom",
    "Rahm Emanuel", "Jimmy Carter", "Michael Dukakis", "Walter Mondale", "Ted Kennedy",
    "John Lewis", "Steny Hoyer", "Adam Schiff", "Maxine Waters", "Keith Ellison", "Ben Cardin",
    "Bob Menendez",
)  # fmt: skip
REPUBLICANS: tuple[str, ...] = (
    "Donald Trump", "George Bush", "Mitt Romney", "John McCain", "Paul Ryan", "Mitch McConnell",
    "Ted Cruz", "Marco Rubio", "Rand Paul", "Newt Gingrich", "Sarah Palin", "Dick Cheney",
    "Mike Pence", "John Boehner", "Kevin McCarthy", "Lindsey Graham", "Chuck Grassley",
    "Orrin Hatch", "John Cornyn", "Roy Blunt", "Tom Cotton", "Jeff Flake", "Jeff Sessions",
    "Scott Walker", "Chris Christie", "Rick Perry", "Jeb Bush", "Mike Huckabee", "Rick Santorum",
    "Bob Dole", "Ronald Reagan", "Richard Nixon", "Gerald Ford", "Dan Quayle", "Bobby Jindal",
    "Nikki Haley", "John Kasich", "Ben Carson", "Steve Scalise", "Eric Cantor",
)  # fmt: skip
