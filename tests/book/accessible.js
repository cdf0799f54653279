// What axe-core finds in the page that it runs in, of impact serious or critical: (scope) => one line per element.
// Folded parts are opened first. Rows of one table, entries of the API and of an index are alike: the first ones stay
// (the API has 57,000 elements). Contrast, axe's slowest rule, is measured on one text of each combination of colour,
// ground, size and weight.
async scope => {
  document.querySelectorAll('details').forEach(d => { d.open = true })
  document.querySelectorAll('.toggle-hidden').forEach(e => e.classList.remove('toggle-hidden'))
  const alike = 'tbody tr:nth-child(n+4), dl.py ~ dl.py ~ dl.py, .genindextable li:nth-child(n+4), .genindextable ~ h2, '
    + '.genindextable ~ .genindextable, .bd-sidebar-secondary li li li:nth-child(n+3)'
  document.querySelectorAll(alike).forEach(e => e.remove())

  const ground = e => {
    for (; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor
      if (colour !== 'rgba(0, 0, 0, 0)') return colour
    }
  }
  const kinds = new Map(), texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  while (texts.nextNode()) {
    const e = texts.currentNode.parentElement
    if (!texts.currentNode.data.trim() || !e.checkVisibility()) continue
    const style = getComputedStyle(e)
    const kind = [style.color, style.opacity, style.fontSize, style.fontWeight, ground(e)].join()
    if (!kinds.has(kind)) kinds.set(kind, e)
  }

  const runs = {
    contrast: [{include: [...kinds.values()]}, {runOnly: ['color-contrast']}],
    rest: [document, {rules: {'color-contrast': {enabled: false}}}],
  }
  const found = []
  for (const name of scope) {
    const [context, options] = runs[name]
    const {violations} = await axe.run(context, {resultTypes: ['violations'], ...options})
    for (const rule of violations.filter(v => ['serious', 'critical'].includes(v.impact)))
      found.push(...rule.nodes.map(n => `${rule.id} ${n.target.join(' ')}: ${n.html.slice(0, 90)}`))
  }
  return found
}
